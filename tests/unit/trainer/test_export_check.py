"""An export that would serve something else than was trained is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_api.chat_template import ChatTemplateSpec
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.export_check import check_served
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from finetune_trainer.tokenizer import load_tokenizer
from trainings import configure
from transformers import GenerationConfig

THINKS = ChatTemplateSpec(
    format_user=["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"],
    format_assistant=["{{content}}<|im_end|>\n"],
    format_system=["<|im_start|>system\n{{content}}<|im_end|>\n"],
    thought_words=["<think>\n", "\n</think>\n"],
    tool_format="qwen",
    stop_words=["<|im_end|>"],
)


def check(config: TrainerConfig, directory: Path, **changes: Any) -> None:
    """Check a tokenizer and a generation config as the export writes them, but for ``changes``."""
    prepare(config)
    prepared = load_prepared(config)
    tokenizer = load_tokenizer(prepared.model_directory, trust_remote_code=False)
    tokenizer.chat_template = changes.get("chat_template", prepared.chat_template)
    if prepared.replace_eos:
        tokenizer.eos_token = changes.get("eos_token", prepared.eos_token)
    tokenizer.add_tokens(changes.get("tokens", []))
    tokenizer.save_pretrained(directory)
    GenerationConfig(eos_token_id=changes.get("stops", list(prepared.stop_token_ids))).save_pretrained(directory)
    check_served(directory, config, prepared)


def custom(tmp_path: Path, tiny: Path, **template: Any) -> TrainerConfig:
    config = configure(tmp_path, tiny, template={"ref": "mine", **template})
    return config.model_copy(update={"chat_template": THINKS})


@pytest.mark.parametrize("template", [{}, {"name": "qwen"}, {"name": "chatml", "system": "Be."}, {"system": "Be."}])
def test_what_is_trained_is_what_is_served(tmp_path: Path, tiny: Path, template: dict[str, Any]) -> None:
    config = configure(tmp_path, tiny, template=template)
    check(config, tmp_path / "model")


@pytest.mark.parametrize("thinking", ["auto", "enabled", "disabled", "preserved"])
def test_tools_and_thoughts_are_served_as_they_were_trained(tmp_path: Path, tiny: Path, thinking: str) -> None:
    config = custom(tmp_path, tiny, thinking=thinking)
    check(config, tmp_path / "model")


def refused(config: TrainerConfig, directory: Path, **changes: Any) -> str:
    with pytest.raises(TrainerError) as failure:
        check(config, directory, **changes)
    assert failure.value.exit_code is ExitCode.EXPORT_INVALID
    return str(failure.value)


def test_another_text_is_refused_with_the_place(tmp_path: Path, tiny: Path) -> None:
    config = custom(tmp_path, tiny)
    prepare(config)
    jinja = load_prepared(config).chat_template
    assert jinja is not None
    told = refused(config, tmp_path / "thoughts", chat_template=jinja.replace("</think>", "</thought>"))
    assert "serves another text than was trained" in told
    assert "</thought>" in told
    calls = refused(config, tmp_path / "calls", chat_template=jinja.replace("</tool_call>", "</call>"))
    assert "</call>" in calls
    prompt = refused(config, tmp_path / "prompt", chat_template=jinja + "{% if add_generation_prompt %}!{% endif %}")
    assert "assistant\\n!" in prompt
    no_tools = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + jinja
    assert "refuses a conversation that can be trained on: no tools" in refused(
        config, tmp_path / "refuses", chat_template=no_tools
    )


def test_a_tokenizer_that_makes_other_tokens_of_the_same_text_is_refused(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, template={"name": "chatml"})
    assert "serves another text" in refused(config, tmp_path / "model", tokens=["thank you"])


def test_an_export_that_would_not_stop_is_refused(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, template={"name": "chatml"})
    assert "does not stop at ['<|im_end|>']" in refused(config, tmp_path / "stops", stops=[0])
    assert "ends at <|endoftext|>" in refused(config, tmp_path / "eos", eos_token="<|endoftext|>", stops=[0, 2])
