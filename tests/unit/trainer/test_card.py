"""The model card says what was trained, on what and how, in a front matter that the hub reads and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.reports import TerminationReport
from finetune_api.status import ModelStatus, Progress
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.card import Facts, model_card
from finetune_trainer.prepared import load_prepared
from trainings import configure, output_of, run

PARAMETERS = ModelStatus(parameters=8_190_735_360, trainable_parameters=43_646_976)


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainerConfig, TerminationReport]:
    """A LoRA job with merged weights."""
    directory = tmp_path_factory.mktemp("job")
    config = configure(directory, tiny, merge={"dtype": "bf16"}, evaluation={"prompts": ["Colours of flag 3?"]})
    return config, run(config)


def front_of(card: str) -> dict[str, Any]:
    """The YAML between the first two lines of dashes."""
    empty, front, rest = card.split("---\n", 2)
    assert not empty
    assert rest.startswith("\n# ")
    read = yaml.safe_load(front)
    assert isinstance(read, dict)
    return read


def rows_of(card: str) -> dict[str, str]:
    """The tables' rows by their first column."""
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ") and "---" not in line]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def card_of(trained: tuple[TrainerConfig, TerminationReport], **edits: Any) -> str:
    """The card of a job that differs from the trained one by ``edits``."""
    config, _ = trained
    body = config.model_dump(by_alias=True, exclude_none=True) | edits
    facts = Facts(load_prepared(config), Progress(step=6, total_steps=6, loss=1.5), PARAMETERS, [])
    return model_card(TrainerConfig.model_validate(body), facts)


@pytest.mark.parametrize(
    ("directory", "library", "relation"), [("adapter", "peft", "adapter"), ("merged", "transformers", "finetune")]
)
def test_it_lies_beside_every_result(
    trained: tuple[TrainerConfig, TerminationReport], directory: str, library: str, relation: str
) -> None:
    config, report = trained
    assert output_of(config, directory, "loss.png").is_file()
    card = output_of(config, directory, "README.md").read_text(encoding="utf-8")
    assert front_of(card) == {
        "library_name": library,
        "base_model": "org/tiny",
        "base_model_relation": relation,
        "pipeline_tag": "text-generation",
        "tags": ["finetune-operator", "sft", "lora"],
    }
    assert ("Weights in bf16, with the adapter merged into them," in card) == (directory == "merged")
    rows = rows_of(card)
    assert report.progress is not None
    assert report.model is not None
    assert rows["held-out loss before"] == f"{report.progress.initial_eval_loss:.4f}"
    assert rows["held-out loss after"] == f"{report.progress.eval_loss:.4f}"
    assert rows["parameters"] == report.model.trained
    assert f"> Colours of flag 3?\n\n- before: {report.samples[0].before}\n- after: {report.samples[0].after}" in card


def test_numbers_of_the_training_are_named(trained: tuple[TrainerConfig, TerminationReport]) -> None:
    numbers = {
        "optimizer": "adafactor", "learningRate": 2e-4, "schedule": "linear", "warmupRatio": 0.1, "globalBatchSize": 16,
        "weightDecay": 0.01, "maxGradNorm": 0.5, "neftuneAlpha": 5, "seed": 7,
    }  # fmt: skip
    rows = rows_of(card_of(trained, hyperparameters=numbers, packing=True, maxLength=512, precision="bf16"))
    assert (
        rows.items()
        >= {
            "optimizer": "adafactor",
            "learning rate": "0.0002 (linear, warm-up 0.1)",
            "global batch size": "16",
            "weight decay": "0.01",
            "gradients clipped to": "0.5",
            "NEFTune alpha": "5",
            "seed": "7",
            "packing": "on",
            "longest sequence": "512",
            "precision": "bf16",
            "parameters": "43,646,976 of 8,190,735,360 parameters trained: 99.5 % fewer",
            "training loss": "1.5000",
        }.items()
    )


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            {"lora": {"rank": 16}},
            {"method": "LoRA", "rank": "16", "alpha": "32", "dropout": "0", "start": "default",
             "target modules": "all linear layers but the output head"},
        ),
        (
            {"lora": {"rank": 8, "alpha": 4, "dropout": 0.05, "targetModules": ["q_proj", "v_proj"], "init": "pissa",
                      "modulesToSave": ["lm_head"], "rslora": True}},
            {"alpha": "4", "dropout": "0.05", "target modules": "`q_proj`, `v_proj`", "start": "pissa",
             "trained in full": "`lm_head`", "variant": "rsLoRA"},
        ),
        (
            {"freeze": {"trainableLayers": -3, "trainableModules": ["mlp"], "extraModules": ["norm"]}},
            {"method": "freeze", "layers": "the first 3", "modules in them": "`mlp`", "other modules": "`norm`"},
        ),
        ({"full": {"masterWeights": "none"}}, {"method": "full", "master weights": "none"}),
    ],
    ids=["lora", "lora in detail", "freeze", "full"],
)  # fmt: skip
def test_the_method_is_told_in_full(
    trained: tuple[TrainerConfig, TerminationReport], method: dict[str, Any], expected: dict[str, str]
) -> None:
    card = card_of(trained, method=method)
    assert rows_of(card).items() >= expected.items()
    assert front_of(card)["library_name"] == ("peft" if "lora" in method else "transformers")


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"bits": 4}, "nf4 by bitsandbytes, with double quantization"),
        (
            {"bits": 4, "type": "fp4", "doubleQuantization": False, "computeDtype": "fp32"},
            "fp4 by bitsandbytes, with single quantization, computed in fp32",
        ),
        ({"bits": 8}, "8 bits by bitsandbytes"),
        ({"method": "hqq", "bits": 3}, "3 bits by hqq"),
        ({"method": "awq"}, "the base is a checkpoint in awq, trained on as dequantized"),
    ],
)
def test_quantization_is_told(
    trained: tuple[TrainerConfig, TerminationReport], quantization: dict[str, Any], said: str
) -> None:
    assert rows_of(card_of(trained, quantization=quantization))["quantization"] == said
    assert "quantization" not in rows_of(card_of(trained))


def test_data_sets_of_the_hub_are_linked_and_others_named(trained: tuple[TrainerConfig, TerminationReport]) -> None:
    uris = ("hf://org/rows/a.jsonl", "hf://org/rows/b.jsonl", "hf://org/more", "pvc://claim/own.jsonl")
    card = card_of(trained, sources=[{"uri": uri} for uri in uris])
    assert front_of(card)["datasets"] == ["org/rows", "org/more"]
    for uri in uris:
        assert f"- `{uri}` (alpaca)" in card


def test_a_base_that_is_not_of_the_hub_is_named_in_words_alone(
    trained: tuple[TrainerConfig, TerminationReport],
) -> None:
    card = card_of(trained, model={"uri": "pvc://models/own"})
    assert not {"base_model", "base_model_relation"} & front_of(card).keys()
    assert "An adapter made from `pvc://models/own`" in card


def test_a_reward_model_and_its_losses_are_told(trained: tuple[TrainerConfig, TerminationReport]) -> None:
    card = card_of(trained, stage="rm")
    assert front_of(card)["pipeline_tag"] == "text-classification"
    assert front_of(card)["tags"] == ["finetune-operator", "rm", "lora"]
    assert "a reward model" in card
