"""Training of every stage beside sft on a tiny model: it learns what the stage is for, and what comes out loads."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.reports import TerminationReport
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import evaluate
from finetune_trainer.batches import Collator
from finetune_trainer.errors import TrainerError
from finetune_trainer.interruption import Interruption
from finetune_trainer.model import count_parameters, load_model
from finetune_trainer.pairs import LabelledCollator, PairCollator
from finetune_trainer.picture import read_history
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import Sequence, load_prepared
from finetune_trainer.progress import FILE
from peft import PeftModel
from safetensors.torch import load_file
from stage_data import PREFERENCE, stage_config
from torch.nn import functional
from trainings import assert_same_result, at, output_of, run, run_interrupted
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

CPU = torch.device("cpu")
METHODS: dict[str, dict[str, Any]] = {"lora": {"lora": {"rank": 4}}, "full": {"full": {}}}
ONE_STEP = {"maxSteps": 1, "warmupRatio": 0.0}


def first_loss(config: TrainerConfig) -> float:
    """The loss of the first step, which the model as it was has computed."""
    run(config)
    loss = read_history(output_of(config, FILE))[1].loss
    assert loss is not None
    return loss


def all_of(config: TrainerConfig) -> list[Sequence]:
    train = load_prepared(config).train
    return [train[i] for i in range(len(train))]


def answer_logps(model: Any, batch: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    """Log-probability of each token of the answers, 0 elsewhere: (batch, longest - 1)."""
    ids, answered = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"][:, 1:].bool()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=batch[f"{prefix}attention_mask"]).logits[:, :-1]
    taken = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    return taken.masked_fill(~answered, 0.0)


def measured(report: TerminationReport) -> tuple[float, float]:
    progress = report.progress
    assert progress is not None
    assert progress.initial_eval_loss is not None
    assert progress.eval_loss is not None
    return progress.initial_eval_loss, progress.eval_loss


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", ["pt", *PREFERENCE])
def test_a_stage_learns_and_what_it_delivers_loads(tmp_path: Path, tiny: Path, stage: Any, method: str) -> None:
    config = stage_config(
        tmp_path, tiny, stage, method=METHODS[method], hyperparameters={"maxSteps": 16, "globalBatchSize": 4}
    )
    report = run(config)
    before, after = measured(report)
    assert after < before - (0.01 if stage == "kto" else 0.05)
    assert report.model is not None
    assert report.model.trainable_parameters == count_parameters(config, tiny)[1]
    history = read_history(output_of(config, FILE))[1:]
    if stage in ("dpo", "orpo", "rm"):
        assert history[-1].reward_accuracy is not None
        assert history[-1].reward_accuracy >= 0.75
    margins = [step.reward_margin for step in history if step.reward_margin is not None]
    if stage == "pt":
        assert not margins
        assert history[-1].reward_accuracy is None
    else:
        assert margins[-1] > max(margins[0], 0.0)

    card = output_of(config, "adapter" if method == "lora" else "model", "README.md").read_text()
    assert f"| stage | {stage} |" in card
    kind = AutoModelForSequenceClassification if stage == "rm" else AutoModelForCausalLM
    more = {"num_labels": 1} if stage == "rm" else {}
    if method == "lora":
        base = kind.from_pretrained(tiny, dtype=torch.float32, **more)
        result = PeftModel.from_pretrained(base, output_of(config, "adapter"))
        assert not output_of(config, "adapter", "ref").exists()  # the reference is the base, not a second adapter
    else:
        result = kind.from_pretrained(output_of(config, "model"))
    result.eval()
    prepared = load_prepared(config)
    if stage == "pt":
        again = evaluate.held_out_loss(result, prepared.validation, Collator(0, packed=False), config, Interruption())
        assert again == pytest.approx(after, rel=1e-4)
    if stage == "rm":
        scores = reward_scores(result, [prepared.validation[i] for i in range(len(prepared.validation))])
        assert -functional.logsigmoid(scores[0] - scores[1]).mean() == pytest.approx(after, rel=1e-4)
        assert not output_of(config, "adapter" if method == "lora" else "model", "generation_config.json").exists()


def test_a_reward_models_new_head_is_trained_in_fp32(tmp_path: Path, tiny: Path) -> None:
    config = stage_config(tmp_path, tiny, "rm", precision="bf16", hyperparameters={"maxSteps": 16})
    before, after = measured(run(config))
    assert after < before - 0.05
    saved = load_file(output_of(config, "adapter", "adapter_model.safetensors"))
    (head,) = (value for name, value in saved.items() if "score" in name)
    assert head.dtype == torch.float32


def reward_scores(model: Any, pairs: list[Sequence]) -> torch.Tensor:
    """Rewards (2, pairs): of chosen and of rejected answers, each computed alone."""
    ends = [int(pair.lengths[0]) for pair in pairs]
    answers = [[pair.input_ids[:end] for pair, end in zip(pairs, ends, strict=True)],
               [pair.input_ids[end:] for pair, end in zip(pairs, ends, strict=True)]]  # fmt: skip
    with torch.no_grad():
        return torch.tensor(
            [[float(model(input_ids=torch.from_numpy(ids)[None]).logits) for ids in part] for part in answers]
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_dpo_begins_at_ln_2_since_model_and_reference_are_one(
    tmp_path: Path, tiny: Path, method: str, precision: str
) -> None:
    config = stage_config(tmp_path, tiny, "dpo", method=METHODS[method], precision=precision, hyperparameters=ONE_STEP)
    assert first_loss(config) == pytest.approx(math.log(2), abs=1e-6)
    history = read_history(output_of(config, FILE))
    assert history[1].reward_margin == pytest.approx(0.0, abs=1e-6)
    assert history[0].initial_eval_loss == pytest.approx(math.log(2), abs=1e-6)


def test_the_weight_of_the_chosen_answers_own_loss_adds_it(tmp_path: Path, tiny: Path) -> None:
    config = stage_config(
        tmp_path,
        tiny,
        "dpo",
        preference={"sftWeight": 0.5},
        validation={"fraction": 0.0},
        hyperparameters={**ONE_STEP, "globalBatchSize": 24, "microBatchSize": 24},
    )
    loss = first_loss(config)
    pairs = all_of(config)
    batch = PairCollator(0)(pairs)
    logps = answer_logps(load_model(config, tiny, CPU).model, batch)[: len(pairs)]
    tokens = batch["completion_mask"][: len(pairs), 1:].sum()
    assert loss == pytest.approx(math.log(2) - 0.5 * float(logps.sum() / tokens), rel=1e-4)


def test_orpo_begins_with_the_loss_of_the_paper(tmp_path: Path, tiny: Path) -> None:
    config = stage_config(
        tmp_path,
        tiny,
        "orpo",
        preference={"beta": 0.5},
        validation={"fraction": 0.0},
        hyperparameters={**ONE_STEP, "globalBatchSize": 24, "microBatchSize": 24},
    )
    loss = first_loss(config)
    pairs = all_of(config)
    batch = PairCollator(0)(pairs)
    model = load_model(config, tiny, CPU).model.eval()
    logps = answer_logps(model, batch).sum(-1) / batch["completion_mask"][:, 1:].sum(-1)
    chosen, rejected = logps.chunk(2)
    odds = chosen - torch.log1p(-chosen.exp()) - (rejected - torch.log1p(-rejected.exp()))
    whole = {**batch, "completion_mask": batch["attention_mask"]}
    seen = answer_logps(model, whole)[: len(pairs)]
    nll = -seen.sum() / whole["completion_mask"][: len(pairs), 1:].sum()
    assert loss == pytest.approx(float(nll - 0.5 * functional.logsigmoid(odds).mean()), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_kto_begins_at_a_half_and_weighs_what_is_desirable(tmp_path: Path, tiny: Path, method: str) -> None:
    config = stage_config(
        tmp_path,
        tiny,
        "kto",
        method=METHODS[method],
        preference={"desirableWeight": 3.0, "undesirableWeight": 0.5},
        validation={"fraction": 0.0},
        hyperparameters={**ONE_STEP, "globalBatchSize": 24, "microBatchSize": 24},
    )
    # Model and reference are one, so that no answer has a reward and nothing has diverged: 1 - sigmoid(0).
    assert first_loss(config) == pytest.approx(0.5 * (3.0 + 0.5) / 2, rel=1e-5)


def test_ktos_held_out_loss_is_that_of_the_paper_behind_training_too(tmp_path: Path, tiny: Path) -> None:
    config = stage_config(
        tmp_path,
        tiny,
        "kto",
        preference={"beta": 0.3},
        validation={"fraction": 0.5},
        hyperparameters={"maxSteps": 4, "globalBatchSize": 12, "microBatchSize": 12},
    )
    _, after = measured(run(config))
    held_out = load_prepared(config).validation
    batch = LabelledCollator(0)([held_out[i] for i in range(len(held_out))])
    base = load_model(config, tiny, CPU).model.unload().eval()
    ratios = []
    for prefix in ("", "KL_"):
        before = answer_logps(base, batch, prefix).sum(-1)
        tuned = PeftModel.from_pretrained(base, output_of(config, "adapter")).eval()
        ratios.append(answer_logps(tuned, batch, prefix).sum(-1) - before)
        base = tuned.unload()
    divergence = ratios[1].mean().clamp(min=0)
    signs = torch.where(batch["label"], 1.0, -1.0)
    assert after == pytest.approx(float((1 - torch.sigmoid(0.3 * signs * (ratios[0] - divergence))).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "method"),
    [("pt", "lora"), ("dpo", "full"), ("kto", "lora"), ("orpo", "lora"), ("rm", "lora")],
)
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, tiny: Path, stage: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"lora": {"rank": 4, "dropout": 0.1}} if method == "lora" else METHODS[method]
    config = stage_config(tmp_path, tiny, stage, method=chosen, packing=stage == "pt", hyperparameters={"maxSteps": 5})
    whole = at(config, tmp_path / "whole")
    run(whole)
    saved = run_interrupted(config, 2, monkeypatch)
    assert {path.name for path in saved.parent.iterdir()} == {"checkpoint-2", "checkpoint-3"}
    run(config, attempt=2)
    assert_same_result(whole, config)


@pytest.mark.parametrize("stage", PREFERENCE)
def test_on_a_quantized_base_what_is_trained_is_in_fp32(tmp_path: Path, tiny: Path, stage: Any) -> None:
    config = stage_config(tmp_path, tiny, stage, method={"lora": {"rank": 4}}, quantization={"bits": 4})
    run(config)
    for name, weight in load_file(output_of(config, "adapter", "adapter_model.safetensors")).items():
        assert weight.dtype == torch.float32, name
        assert not torch.equal(weight, weight.bfloat16().float()), name  # small updates are not lost


@pytest.mark.parametrize("stage", ["dpo", "rm"])
def test_freeze_trains_its_layers_and_a_reward_models_head(tmp_path: Path, tiny: Path, stage: Any) -> None:
    config = stage_config(tmp_path, tiny, stage, method={"freeze": {"trainableLayers": 1}})
    run(config)
    before = load_file(tiny / "model.safetensors")
    after = load_file(output_of(config, "model", "model.safetensors"))
    changed = {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
    assert {name.split(".")[0] if name == "score.weight" else name.split(".")[2] for name in changed} == (
        {"1", "score"} if stage == "rm" else {"1"}
    )


@pytest.mark.parametrize("stage", ["dpo", "rm"])  # orpo counts tokens, kto measures within a micro-batch
def test_accumulated_micro_batches_are_one_batch(tmp_path: Path, tiny: Path, stage: Any) -> None:
    losses = []
    for micro in (8, 2):
        directory = tmp_path / str(micro)
        directory.mkdir()
        config = stage_config(
            directory,
            tiny,
            stage,
            validation={"fraction": 0.0},
            hyperparameters={"maxSteps": 2, "globalBatchSize": 8, "microBatchSize": micro, "warmupRatio": 0.0},
        )
        run(config)
        losses.append([report.loss for report in read_history(output_of(config, FILE))[1:]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("stage", PREFERENCE)
def test_a_lost_loss_ends_training(tmp_path: Path, tiny: Path, stage: Any) -> None:
    config = stage_config(
        tmp_path, tiny, stage, method={"full": {}}, validation={"fraction": 0.0},
        hyperparameters={"maxSteps": 8, "learningRate": 10.0, "maxGradNorm": 0.0, "warmupRatio": 0.0,
                         "schedule": "constant", "weightDecay": 1e9},
    )  # fmt: skip
    with pytest.raises(TrainerError, match="learningRate") as raised:
        run(config)
    assert raised.value.exit_code is ExitCode.NON_FINITE_LOSS
    named = re.search(r"The step held rows ([\d, ]+) of the data", str(raised.value))
    assert named is not None
    rows = [int(number) for number in named[1].split(",")]
    assert len(rows) == config.hyperparameters.global_batch_size
    assert set(rows) <= set(range(1, 25))


@pytest.mark.parametrize("stage", ["dpo", "pt"])
def test_prompts_are_answered_and_a_text_is_gone_on_from(tmp_path: Path, tiny: Path, stage: Any) -> None:
    config = stage_config(
        tmp_path,
        tiny,
        stage,
        method={"full": {}},
        evaluation={"prompts": ["Flag 3. It"], "maxNewTokens": 8},
        hyperparameters={"maxSteps": 10},
    )
    report = run(config)
    assert [sample.before != sample.after for sample in report.samples] == [True]


def test_a_packed_text_has_the_loss_that_it_has_alone(tmp_path: Path, tiny: Path) -> None:
    config = stage_config(tmp_path, tiny, "pt", maxLength=64, validation={"fraction": 0.0})
    found = []
    for packed in (False, True):
        settings = config.model_copy(update={"packing": packed})
        prepare(settings)
        model = load_model(settings, tiny, CPU).model
        sequences = load_prepared(settings).train
        with evaluate.evaluating(model, "fp32"):
            parts = [
                evaluate.token_losses(model, Collator(0, packed=packed)([sequences[i]])) for i in range(len(sequences))
            ]
        found.append(torch.cat(parts).sort().values)
        if packed:
            assert max(len(sequences[i].lengths) for i in range(len(sequences))) > 1
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_merged_reward_model_scores_as_its_adapter(tmp_path: Path, tiny: Path) -> None:
    config = stage_config(tmp_path, tiny, "rm", merge={"dtype": "fp32"})
    run(config)
    pairs = all_of(config)[:3]
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1, dtype=torch.float32)
    adapter = PeftModel.from_pretrained(base, output_of(config, "adapter")).eval()
    expected = reward_scores(adapter, pairs)
    merged = AutoModelForSequenceClassification.from_pretrained(output_of(config, "merged")).eval()
    torch.testing.assert_close(reward_scores(merged, pairs), expected, rtol=1e-4, atol=1e-5)
    settings = json.loads(output_of(config, "adapter", "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    assert "score" in settings["modules_to_save"]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")  # what TRL 1.16 still calls
@pytest.mark.parametrize(("stage", "method"), [("dpo", "lora"), ("orpo", "full"), ("rm", "lora")])
def test_checkpointed_activations_change_nothing(tmp_path: Path, tiny: Path, stage: Any, method: str) -> None:
    losses = []
    ways = {
        "kept": {},
        "again": {"gradientCheckpointing": True},
        "but attention": {"gradientCheckpointing": True, "keepAttention": True},
    }
    for name, wishes in ways.items():
        (directory := tmp_path / name).mkdir()
        config = stage_config(
            directory,
            tiny,
            stage,
            method=METHODS[method],
            validation={"fraction": 0.0},
            hyperparameters={"maxSteps": 2, "warmupRatio": 0.0},
            acceleration=wishes,
        )
        run(config)
        losses.append([report.loss for report in read_history(output_of(config, FILE))[1:]])
    for found in losses[1:]:
        assert found == pytest.approx(losses[0], rel=1e-5)
