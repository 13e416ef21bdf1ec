"""A ChatTemplate of the user's own: the guide's declaration, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from finetune_api.chat_template import ChatTemplate, ChatTemplateSpec
from finetune_api.failures import ExitCode
from finetune_api.training import TemplateSpec
from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Message
from finetune_trainer.templates import FAMILIES, resolve_template
from finetune_trainer.templates.custom import custom_template
from finetune_trainer.templates.own_tokens import needs_tokenizer
from finetune_trainer.templates.plain import plain_messages, plain_tools
from finetune_trainer.templates.tool_formats import TOOL_FORMATS
from finetune_trainer.tokenizer import load_tokenizer
from formats import ONE_CALL, PLAIN, SEVERAL_CALLS, THOUGHT, TOOLS, thoughtless
from tiny_model import make_tiny_model

GUIDE = ChatTemplateSpec(
    format_user=["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"],
    format_assistant=["{{content}}<|im_end|>\n"],
    format_system=["<|im_start|>system\n{{content}}<|im_end|>\n"],
    format_function=["{{content}}<|im_end|>\n"],
    format_observation=[
        "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n", "<|im_start|>assistant\n"
    ],
    tool_format="qwen",
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    stop_words=["<|im_end|>"],
    replace_eos=True,
)  # fmt: skip
EXAMPLE = Path(__file__).parents[3] / "examples/chat-template.yaml"


def text_of(segments: Any) -> str:
    return "".join(segment.text for segment in segments)


def trained(segments: Any) -> str:
    return "".join(segment.text for segment in segments if segment.trained)


def edited(**fields: Any) -> ChatTemplateSpec:
    return GUIDE.model_copy(update=fields)


def test_the_guides_declaration_is_the_built_in_qwen() -> None:
    mine = custom_template("mine", GUIDE)
    assert text_of(mine.segments(PLAIN)) == text_of(FAMILIES["qwen"].segments(PLAIN))
    assert trained(mine.segments(PLAIN)) == "Hello!<|im_end|>No.<|im_end|>"
    assert (mine.stop_words, mine.replace_eos) == (("<|im_end|>",), True)


def test_tools_calls_and_results_are_written_as_the_guide_declares() -> None:
    text = text_of(custom_template("mine", GUIDE).segments(ONE_CALL, TOOLS))
    assert text.endswith(
        "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\nI look.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n{"sky": "clear"}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\nIt is clear.<|im_end|>\n"
    )


@pytest.mark.parametrize(
    "spec",
    [
        GUIDE,
        edited(
            assistant_header=["<|im_start|>", "assistant\n"],
            format_user=["<|im_start|>user\n{{content}}<|im_end|>"],
            format_observation=["[{{content}}]"],
            format_result=["({{content}})"],
            format_tools=["Tools: {{content}}"],
        ),
        edited(
            efficient_eos=True,
            format_assistant=["{{content}}"],
            format_function=[],
            format_prefix=["<|endoftext|>"],
        ),
        edited(format_user=["[{{idx}}] {{content}}\n"], format_observation=[], tool_format="default"),
    ],
    ids=["the guide's", "a header apart", "an end between turns", "numbered rounds"],
)  # fmt: skip
def test_what_is_declared_is_exported(tiny: Path, spec: ChatTemplateSpec) -> None:
    tokenizer = load_tokenizer(tiny, trust_remote_code=False)
    template = resolve_template(TemplateSpec(ref="mine"), tokenizer, spec)
    assert template.name == "mine"
    for messages in (PLAIN, ONE_CALL, thoughtless(SEVERAL_CALLS)):
        served = tokenizer.apply_chat_template(
            plain_messages(messages), tools=plain_tools(TOOLS), chat_template=template.jinja(), tokenize=False
        )
        assert text_of(template.segments(messages, TOOLS)) == served


def test_thoughts_stand_between_the_words() -> None:
    spec = edited(thought_words=["<think>\n", "\n</think>\n"], enable_thinking=False)
    mine = custom_template("mine", spec)
    assert trained(mine.segments(THOUGHT, thinking="enabled")).endswith("<think>\ntwo\n</think>\nd<|im_end|>")
    assert mine.prompt([Message("user", "Hi")]).endswith("assistant\n<think>\n\n</think>\n")


def test_the_tokenizers_own_tokens_are_filled_in(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path, chat_template=False), trust_remote_code=False)
    spec = edited(
        format_prefix=["{{bos_token}}"],
        format_assistant=["{{content}}", "{{eos_token}}"],
        format_function=[],
        stop_words=["{{eos_token}}"],
    )
    template = resolve_template(TemplateSpec(ref="mine"), tokenizer, spec)
    segments = template.segments(PLAIN[:2])
    assert text_of(segments).startswith("<|endoftext|><|im_start|>system")
    assert trained(segments) == "Hello!<|endoftext|>"
    assert template.stop_words == ("<|endoftext|>",)
    assert needs_tokenizer(custom_template("mine", spec))
    assert not needs_tokenizer(template)
    tokenizer.eos_token = None
    with pytest.raises(TrainerError, match="this one has none; name a template of the model's family"):
        resolve_template(TemplateSpec(ref="mine"), tokenizer, spec)


def test_the_example_can_be_trained_on() -> None:
    example = ChatTemplate.model_validate(next(yaml.safe_load_all(EXAMPLE.read_text())))
    segments = custom_template(example.metadata.name, example.spec).segments(PLAIN[:2])
    assert text_of(segments) == "<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"format_user": ["no place"]}, "spec.formatUser: must hold {{content}} once"),
        ({"format_system": ["{{content}}", "{{content}}"]}, "spec.formatSystem: must hold {{content}} once"),
        ({"format_observation": ["{{idx}} {{content}}"]}, "spec.formatObservation: holds {{idx}}, which formatUser"),
        ({"format_prefix": ["{{content}}"]}, "spec.formatPrefix: holds {{content}} or {{idx}}, and no message"),
        ({"assistant_header": ["{{idx}}"]}, "spec.assistantHeader: holds"),
        ({"stop_words": []}, "spec.stopWords: must name what ends an answer"),
        ({"stop_words": [""]}, "spec.stopWords: holds an empty word"),
        ({"stop_words": ["</s>"]}, "spec.formatAssistant: must hold a stop word behind {{content}}"),
        ({"efficient_eos": True}, "spec.formatAssistant: holds a stop word behind {{content}}, which efficientEos"),
        ({"tool_format": "none"}, "spec.formatFunction: needs toolFormat, which is none"),
        ({"thought_words": ["<think>"]}, "spec.thoughtWords: must be two"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_field(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainerError) as failure:
        custom_template("mine", edited(**fields))
    assert failure.value.exit_code is ExitCode.TEMPLATE_INVALID
    assert str(failure.value).startswith("ChatTemplate mine: spec.")
    assert told in str(failure.value)


def test_the_tool_formats_of_the_api_are_those_of_the_trainer() -> None:
    known = get_args(ChatTemplateSpec.model_fields["tool_format"].annotation)
    assert set(known) - {"none"} <= set(TOOL_FORMATS)
