"""Activations come back from host memory as they lay on the device. The way there is TRL's, tried in tests/gpu."""

from __future__ import annotations

import pytest
import torch
from finetune_trainer.offloaded import as_they_lie

NUMBERS = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
TENSORS = {
    "contiguous": NUMBERS,
    "as attention has it": NUMBERS.transpose(1, 2),
    "turned twice": NUMBERS.permute(3, 0, 2, 1),
    "a part of rows": NUMBERS[..., 1:3],
    "a part, turned": NUMBERS[:, 1:].transpose(0, 3),
    "one row": NUMBERS[:, :1].transpose(1, 2),
    "a number": torch.tensor(3.0),
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_comes_back_is_what_went(name: str) -> None:
    pack, unpack = as_they_lie(lambda tensor: tensor.contiguous().clone(), lambda kept: kept.clone())
    found = unpack(pack(TENSORS[name]))
    assert torch.equal(found, TENSORS[name])
    assert found.stride() == TENSORS[name].stride()


def test_what_is_dense_goes_without_a_copy() -> None:
    seen: list[torch.Tensor] = []
    pack, unpack = as_they_lie(lambda tensor: seen.append(tensor) or tensor, lambda kept: kept)  # type: ignore[func-returns-value]
    tensor = NUMBERS.permute(0, 2, 1, 3)
    found = unpack(pack(tensor))
    assert seen[0].is_contiguous()
    assert seen[0].data_ptr() == found.data_ptr() == tensor.data_ptr()


def test_repeated_values_stay_repeated() -> None:
    seen: list[tuple[int, ...]] = []
    pack, _ = as_they_lie(lambda tensor: seen.append(tensor.stride()), lambda kept: kept)  # type: ignore[func-returns-value]
    pack(NUMBERS[:, :1].expand(2, 7, 4, 5))
    assert 0 in seen[0]


def test_gradients_through_it_are_the_same() -> None:
    weight = torch.randn(4, 4, requires_grad=True)
    gradients = []
    pack, unpack = as_they_lie(lambda tensor: tensor.detach().contiguous().clone(), lambda kept: kept)
    for hooked in (False, True):
        inputs = torch.linspace(0, 1, 24).reshape(4, 6).t()
        if hooked:
            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                outputs = torch.tanh(inputs @ weight).t() @ inputs
        else:
            outputs = torch.tanh(inputs @ weight).t() @ inputs
        gradients.append(torch.autograd.grad(outputs.sum(), weight)[0])
    torch.testing.assert_close(gradients[1], gradients[0])
