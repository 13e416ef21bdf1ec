"""Real training of a tiny model on the CPU: what comes out, and that an interruption changes nothing."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import evaluate
from finetune_trainer import train as training
from finetune_trainer.batches import Collator
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.errors import TrainerError
from finetune_trainer.interruption import Interruption
from finetune_trainer.loop import FineTuner
from finetune_trainer.model import count_parameters, load_model
from finetune_trainer.picture import read_history
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from finetune_trainer.progress import FILE, ProgressLog
from finetune_trainer.train import BASELINE
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trainings import Spoiler, assert_same_result, at, configure, output_of, run, run_interrupted
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.training_args import OptimizerNames

CPU = torch.device("cpu")


def test_lora_learns_and_delivers_an_adapter_that_loads(
    tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = configure(
        tmp_path,
        tiny,
        hyperparameters={"maxSteps": 20},
        evaluation={"prompts": ["Colours of flag 3?"]},
    )
    report = run(config)
    progress = report.progress
    assert progress is not None
    assert (progress.step, progress.total_steps) == (20, 20)
    assert progress.initial_eval_loss is not None
    assert progress.eval_loss is not None
    assert progress.eval_loss < progress.initial_eval_loss - 0.1
    assert report.model is not None
    assert report.model.trainable_parameters == count_parameters(config, tiny)[1]
    assert re.search(r"[\d,]+ of [\d,]+ parameters trained: [\d.]+ % fewer", report.model.trained)
    assert report.model.trained in caplog.text
    assert f"| parameters | {report.model.trained} |" in output_of(config, "adapter", "README.md").read_text()
    assert report.checkpoint is not None
    assert report.checkpoint.step == 20
    assert [sample.before != sample.after for sample in report.samples] == [True]

    adapter = output_of(config, "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "org/tiny"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    assert tokenizer.chat_template == load_prepared(config).chat_template
    stops = GenerationConfig.from_pretrained(adapter).eos_token_id
    assert set(load_prepared(config).stop_token_ids) <= set(stops if isinstance(stops, list) else [stops])
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), adapter)
    measured = evaluate.held_out_loss(
        tuned, load_prepared(config).validation, Collator(0, packed=False), config, Interruption()
    )
    assert measured == pytest.approx(progress.eval_loss, rel=1e-4)
    assert {"README.md", "loss.png"} <= {path.name for path in adapter.iterdir()}


def test_a_base_model_gets_the_template_that_trained_it_and_stops_where_it_says(
    tmp_path: Path, tiny_base: Path
) -> None:
    assert AutoTokenizer.from_pretrained(tiny_base).chat_template is None
    config = configure(tmp_path, tiny_base, template={"name": "chatml"}, hyperparameters={"maxSteps": 1})
    run(config)
    tokenizer = AutoTokenizer.from_pretrained(output_of(config, "adapter"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == end
    stops = GenerationConfig.from_pretrained(output_of(config, "adapter")).eos_token_id
    assert stops[0] == end
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_full_trains_every_weight_and_delivers_a_model_that_loads(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, method={"full": {}}, precision="bf16")
    report = run(config)
    assert report.output is not None
    assert report.output.path == "model"
    before = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(output_of(config, "model"))
    assert tuned.dtype == torch.bfloat16
    assert all(
        not torch.equal(value.to(before[name].dtype), before[name]) for name, value in tuned.state_dict().items()
    )


def test_every_step_is_reported_once_with_growing_tokens(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, evaluation={"everySteps": 3})
    run(config)
    history = read_history(output_of(config, FILE))
    assert [report.step for report in history] == list(range(7))
    tokens = [report.tokens or 0 for report in history]
    assert tokens == sorted(tokens)
    assert [report.step for report in history if report.eval_loss is not None] == [3, 6]


@pytest.mark.parametrize(
    ("method", "edits"),
    [
        ({"lora": {"rank": 4, "dropout": 0.1}}, {}),
        ({"lora": {"rank": 4, "dropout": 0.1}}, {"packing": True}),
        ({"lora": {"rank": 4, "init": "pissa"}}, {}),
        ({"lora": {"rank": 4}}, {"quantization": {"bits": 4}}),
        ({"full": {}}, {}),
        ({"full": {}}, {"packing": True}),
    ],
    ids=["lora", "lora packed", "pissa", "qlora", "full", "full packed"],
)
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, tiny: Path, method: dict[str, Any], edits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, tiny, method=method, hyperparameters={"maxSteps": 8}, **edits)
    whole = at(config, tmp_path / "whole")
    run(whole)
    run_interrupted(config, 3, monkeypatch)
    run(config, attempt=2)
    assert_same_result(whole, config)


def test_a_crash_goes_on_from_the_last_checkpoint(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(tmp_path, tiny)
    written = ProgressLog.report

    def crash(log: ProgressLog, progress: Any) -> None:
        written(log, progress)
        if progress.step == 5:
            raise RuntimeError("crash")

    monkeypatch.setattr(ProgressLog, "report", crash)
    with pytest.raises(RuntimeError, match="crash"):
        run(config)
    monkeypatch.setattr(ProgressLog, "report", written)
    baseline = output_of(config, BASELINE).read_bytes()
    report = run(config, attempt=2)
    assert report.progress is not None
    assert report.progress.step == 6
    assert output_of(config, BASELINE).read_bytes() == baseline
    lines = output_of(config, FILE).read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 6, 6]


def test_an_attempt_that_ends_behind_the_last_step_is_not_trained_further(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, tiny)
    whole = at(config, tmp_path / "whole")
    run(whole)
    deliver = training.export
    monkeypatch.setattr(training, "export", crash)
    with pytest.raises(RuntimeError, match="crash"):
        run(config)
    monkeypatch.setattr(training, "export", deliver)
    report = run(config, attempt=2)
    assert report.progress is not None
    assert (report.progress.step, report.progress.loss) == (6, read_history(output_of(whole, FILE))[-1].loss)
    name = "adapter/adapter_model.safetensors"
    assert output_of(config, name).read_bytes() == output_of(whole, name).read_bytes()


def crash(*_arguments: Any, **_options: Any) -> None:
    raise RuntimeError("crash")


def test_an_attempt_after_a_finished_one_reports_the_same(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny)
    report = run(config)
    again = run(config, attempt=2)
    assert again == report


def losses(config: TrainerConfig, tiny: Path, *, packed: bool) -> list[float]:
    """Loss of each supervised token, sorted by nothing: in the order of the set."""
    settings = config.model_copy(update={"packing": packed})
    prepare(settings)
    model = load_model(settings, tiny, CPU).model
    prepared, collate = load_prepared(settings).train, Collator(0, packed=packed)
    found: list[float] = []
    with evaluate.evaluating(model, "fp32"):
        for index in range(len(prepared)):
            sequence = prepared[index]
            found += evaluate.token_losses(model, collate([sequence])).tolist()
    return found


@pytest.mark.parametrize("attention", ["sdpa", "disabled"])
def test_packed_samples_have_the_loss_that_they_have_alone(tmp_path: Path, tiny: Path, attention: str) -> None:
    config = configure(tmp_path, tiny, acceleration={"flashAttention": attention})
    alone, packed = losses(config, tiny, packed=False), losses(config, tiny, packed=True)
    assert len(load_prepared(config.model_copy(update={"packing": True})).train) < 10
    torch.testing.assert_close(torch.tensor(sorted(packed)), torch.tensor(sorted(alone)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "disabled"])
def test_what_a_packed_sample_says_depends_on_no_token_of_another(tmp_path: Path, tiny: Path, attention: str) -> None:
    config = configure(tmp_path, tiny, packing=True, acceleration={"flashAttention": attention})
    prepare(config)
    model, embedded = load_model(config, tiny, CPU).model, list[torch.Tensor]()
    sequence = load_prepared(config).train[0]
    batch = Collator(0, packed=True)([sequence])
    owners = torch.repeat_interleave(torch.arange(len(sequence.lengths)), torch.tensor(sequence.lengths.tolist()))
    assert len(sequence.lengths) > 2

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.get_input_embeddings().register_forward_hook(keep)
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits[0]
    for sample in range(len(sequence.lengths)):
        (gradient,) = torch.autograd.grad(logits[owners == sample].square().sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().amax(dim=1) > 0
        assert torch.equal(reached, owners == sample)


def test_a_model_that_mixes_packed_samples_is_refused(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, packing=True)
    prepare(config)
    model = load_model(config, tiny, CPU).model
    prepared, collate = load_prepared(config), Collator(0, packed=True)
    evaluate.check_packing(model, prepared.train, collate, config)

    # Weights so large that attention is sharp, and a forward pass that knows nothing of position ids.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    forward = model.forward
    model.forward = lambda **inputs: forward(**{k: v for k, v in inputs.items() if k != "position_ids"})
    with pytest.raises(TrainerError, match=r"dataset\.packing") as raised:
        evaluate.check_packing(model, prepared.train, collate, config)
    assert raised.value.exit_code is ExitCode.ACCELERATION_UNAVAILABLE


def test_accumulated_gradients_weigh_tokens_not_batches(tmp_path: Path, tiny: Path) -> None:
    results = []
    for micro in (1, 4):
        config = at(configure(tmp_path, tiny, hyperparameters={"microBatchSize": micro}), tmp_path / f"micro-{micro}")
        run(config)
        results.append(load_file(output_of(config, "adapter/adapter_model.safetensors")))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=2e-3, atol=2e-5)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, tiny: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = load_file(tiny / "model.safetensors")
    name = next(key for key in weights if key.endswith("down_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    config = configure(tmp_path, broken, validation={"fraction": 0.0})
    with pytest.raises(TrainerError, match="learningRate") as raised:
        run(config)
    assert raised.value.exit_code is ExitCode.NON_FINITE_LOSS
    assert not output_of(config, "adapter").exists()
    named = re.search(r"The step held rows ([\d, ]+) of the data", str(raised.value))
    assert named is not None
    rows = [int(number) for number in named[1].split(",")]
    assert len(rows) == config.hyperparameters.global_batch_size
    assert set(rows) <= set(range(1, 25))


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ({"loss": INFINITE}, "the loss of step 3 is inf"),
        ({"gradient": NAN}, r"the gradients of step 3 are not finite \(norm nan\)"),
        ({"gradient": INFINITE}, r"the gradients of step 3 are not finite \(norm (inf|nan)\)"),
    ],
)
def test_a_step_whose_loss_or_gradients_are_no_numbers_is_never_saved(
    tmp_path: Path, tiny: Path, spoilt: dict[str, float], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = 0.0 if "inf" in told else 1.0  # the norm is known without clipping too
    config = configure(tmp_path, tiny, checkpoint={"everySteps": 1, "keep": 9}, hyperparameters={"maxGradNorm": clip})
    spoiler = Spoiler(monkeypatch, 3, **spoilt)
    with pytest.raises(TrainerError, match=told) as raised:
        run(config)
    assert raised.value.exit_code is ExitCode.NON_FINITE_LOSS
    rows = ", ".join(map(str, sorted(spoiler.rows[3])))
    assert f"The step held rows {rows} of the data" in str(raised.value)
    assert "The checkpoint of step 2 is good" in str(raised.value)
    saved = Checkpoints(output_of(config), keep=9)
    assert saved.newest() == saved.path_of(2)
    kept = load_file(saved.path_of(2) / "adapter_model.safetensors")
    assert all(value.isfinite().all() for value in kept.values())


def test_weights_that_leave_their_types_range_are_never_saved(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, tiny, checkpoint={"everySteps": 1, "keep": 9})
    step = torch.optim.AdamW.step

    def overflow(optimizer: torch.optim.AdamW, *arguments: Any) -> None:
        step(optimizer, *arguments)
        trained = optimizer.param_groups[0]["params"][0]
        if optimizer.state[trained]["step"] == 2:
            trained.data[0, 0] = INFINITE

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(TrainerError, match="weights are not finite after step 2") as raised:
        run(config)
    assert raised.value.exit_code is ExitCode.NON_FINITE_LOSS
    assert "The checkpoint of step 1 is good" in str(raised.value)
    assert Checkpoints(output_of(config), keep=9).newest() == output_of(config, "checkpoints", "checkpoint-1")


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize("scale", [2.0**16, 1.0])
def test_under_loss_scaling_gradients_that_overflow_cost_a_step_unless_no_scale_helps(
    tmp_path: Path, tiny: Path, scale: float, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 is for GPUs; torch's scaler and its fused optimizer, which GPUs have, run anywhere."""
    config = configure(tmp_path, tiny, checkpoint={"everySteps": 1, "keep": 9})
    Spoiler(monkeypatch, 3, gradient=INFINITE)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    begin, create = FineTuner.begin, FineTuner.create_optimizer

    def created(tuner: FineTuner, *arguments: Any) -> torch.optim.Optimizer:
        tuner.args.optim = OptimizerNames(optimizer)
        return create(tuner, *arguments)

    def scaled(tuner: FineTuner) -> None:
        tuner.args.fp16, tuner.accelerator.scaler, tuner.optimizer.scaler = True, scaler, scaler
        tuner.optimizer.__setstate__({})  # as if it had been made with the scaler
        begin(tuner)

    monkeypatch.setattr(FineTuner, "create_optimizer", created)
    monkeypatch.setattr(FineTuner, "begin", scaled)
    monkeypatch.setattr(
        Accelerator, "unscale_gradients", lambda accelerator: scaler.unscale_(accelerator._optimizers[0].optimizer)
    )
    if scale == 1.0:
        with pytest.raises(TrainerError, match="the gradients of step 3 are not finite") as raised:
            run(config)
        assert raised.value.exit_code is ExitCode.NON_FINITE_LOSS
        return
    report = run(config)
    assert report.progress is not None
    assert report.progress.step == 6
    assert scaler.get_scale() == scale / 2
    history = read_history(output_of(config, FILE))
    assert [step.grad_norm is None for step in history[1:]] == [False, False, True, False, False, False]
    before, after = (
        load_file(output_of(config, "checkpoints", f"checkpoint-{step}", "adapter_model.safetensors"))
        for step in (2, 3)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_sequences_name_the_rows_that_they_come_from(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, packing=True)
    prepare(config)
    tokenizer, prepared = AutoTokenizer.from_pretrained(tiny), load_prepared(config)
    named = []
    for part in (prepared.train, prepared.validation):
        for index in range(len(part)):
            text = tokenizer.decode(part[index].input_ids)
            assert [int(flag) + 1 for flag in re.findall(r"Colours of flag (\d+)", text)] == list(part[index].rows)
            named += part[index].rows
    assert sorted(named) == list(range(1, 25))


@pytest.mark.parametrize(
    ("method", "field", "valid"),
    [
        ({"lora": {"targetModules": ["q_proj", "qq_proj"]}}, "targetModules", "v_proj"),
        ({"lora": {"modulesToSave": ["head"]}}, "modulesToSave", "lm_head"),
    ],
)
def test_a_module_that_does_not_exist_is_named_with_those_that_do(
    tmp_path: Path, tiny: Path, method: dict[str, Any], field: str, valid: str
) -> None:
    config = configure(tmp_path, tiny, method=method)
    with pytest.raises(TrainerError, match=field) as raised:
        count_parameters(config, tiny)
    assert raised.value.exit_code is ExitCode.METHOD_INVALID
    assert valid in str(raised.value)


def test_a_gpu_that_is_not_there_is_a_refusal(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = configure(tmp_path, tiny, distributed={"gpusPerNode": 1})
    with pytest.raises(TrainerError, match="gpusPerNode") as raised:
        run(config)
    assert raised.value.exit_code is ExitCode.ACCELERATION_UNAVAILABLE
