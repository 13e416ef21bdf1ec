"""What stays from the first step to the last."""

from __future__ import annotations

import gc

import pytest
import torch
from finetune_trainer.steady import steady
from torch import nn


def model_in_parts() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)))


def walks_of(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts what reaches the model's last layer, which a walk over all modules does."""
    seen: list[str] = []
    last = list(model.modules())[-1]
    train, parameters = last.train, last.named_parameters
    monkeypatch.setattr(last, "train", lambda mode=True: seen.append("train") or train(mode))
    monkeypatch.setattr(last, "named_parameters", lambda *a, **k: seen.append("parameters") or parameters(*a, **k))
    return seen


def test_a_mode_that_is_there_already_is_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_in_parts().train()
    seen = walks_of(model, monkeypatch)
    with steady(model, replaced=False):
        begun = len(seen)
        for _ in range(3):
            model.train()
        assert len(seen) == begun
        model.eval()
        assert not any(part.training for part in model.modules())
        model.train()
        assert all(part.training for part in model.modules())
    begun = len(seen)
    model.train()
    assert len(seen) == begun + 1


def test_parts_of_another_mode_are_put_right_at_the_beginning() -> None:
    model = model_in_parts().train()
    model[1].eval()  # as adapters are added to a model that was loaded to answer
    with steady(model, replaced=False):
        model.train()
        assert all(part.training for part in model.modules())


def test_parameters_are_those_of_the_beginning_and_their_gradients_are_cleared() -> None:
    model = model_in_parts()
    expected = list(model.parameters())
    with steady(model, replaced=False):
        assert [id(part) for part in model.parameters()] == [id(part) for part in expected]
        assert list(model.parameters(recurse=False)) == []
        model(torch.ones(1, 2)).sum().backward()
        model.zero_grad()
        assert all(part.grad is None for part in expected)
    assert not {"train", "parameters"} & set(vars(model))


def test_a_model_whose_parameters_are_replaced_is_walked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_in_parts().train()
    seen = walks_of(model, monkeypatch)
    with steady(model, replaced=True):
        model.train()
    assert seen == ["train"]


def test_what_was_set_on_the_model_before_is_there_afterwards_also_after_an_error() -> None:
    model = model_in_parts()
    calls: list[bool] = []
    own = lambda mode=True: calls.append(mode) or nn.Module.train(model, mode)  # noqa: E731
    vars(model)["train"] = own

    def fails() -> None:
        with steady(model, replaced=False):
            assert gc.get_freeze_count() > 0
            raise RuntimeError("over")

    with pytest.raises(RuntimeError, match="over"):
        fails()
    assert vars(model)["train"] is own
    assert calls == [True]
    assert gc.get_freeze_count() == 0
