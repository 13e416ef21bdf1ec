"""Where each family's published format is found, and how that wants its conversations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TALKS = ("talks", "spaced")
TOOLS = (*TALKS, "tools", "parallel")
THOUGHTS = (*TALKS, "thoughts")
ALL = (*TOOLS, "thoughts", "thought calls")


@dataclass(frozen=True)
class Form:
    """How a template wants what transformers leaves open."""

    arguments: str = "mapping"
    """Of a call: ``mapping``, or ``text`` for its JSON."""
    nothing: str | None = ""
    """The content of an answer that only calls."""
    thought: str = "reasoning_content"
    """Key of the chain of thought; ``{thought}`` in it makes it a form in which the content begins."""


@dataclass(frozen=True)
class Source:
    """A template by its package and name there, and what its model's tokenizer or its users put in."""

    package: str
    name: str
    groups: tuple[str, ...] = TALKS
    """Of conversations that it is held to; see :data:`conversations.GROUPS`."""
    bos: str = ""
    eos: str = ""
    form: Form = field(default_factory=Form)
    thinking: str = ""
    """The variable that turns thinking on and off; empty where there is none."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Others, given to both sides."""
    lists_tools: bool = True
    """Whether it writes which functions there are; one that does not is held to the calls alone."""


_THINK = "<think>\n{thought}\n</think>\n\n"
_DEEPSEEK: dict[str, Any] = {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>", "lists_tools": False}

SOURCES: dict[str, tuple[Source, ...]] = {
    "chatml": (
        Source("llama.cpp", "teknium/OpenHermes-2.5-Mistral-7B"),
        Source("axolotl", "chatml"),
    ),
    "mimo": (Source("llama.cpp", "MiMo-VL", TOOLS),),
    "qwen": (Source("llama.cpp", "Qwen-Qwen2.5-7B-Instruct", TOOLS), Source("trl", "qwen2_5", TOOLS)),
    "qwen3": (
        Source("llama.cpp", "Qwen-Qwen3-0.6B", ALL, thinking="enable_thinking"),
        Source("trl", "qwen3", ALL, thinking="enable_thinking"),
    ),
    "qwen3_nothink": (Source("trl", "qwen3_instruct_2507", TOOLS),),
    "qwen3_vl": (Source("trl", "qwen3_vl", TOOLS),),
    "qwen3_5": (Source("trl", "qwen3_5_think", ALL, thinking="enable_thinking"),),
    "qwen3_5_nothink": (Source("trl", "qwen3_5_nothink", ALL, thinking="enable_thinking"),),
    "qwen3_6": (Source("trl", "qwen3_6", ALL, thinking="enable_thinking"),),
    "qwen2_vl": (Source("trl", "qwen2_5_vl"), Source("axolotl", "qwen2_vl")),
    "deepseek": (Source("llama.cpp", "DeepSeek-V2", **_DEEPSEEK),),
    "deepseek3": (
        Source("axolotl", "deepseek_v3", TOOLS, form=Form(arguments="text", nothing=None), **_DEEPSEEK),
    ),
    "deepseekr1": (
        Source("trl", "deepseek_r1_distill", ALL, form=Form("text", None, _THINK), **_DEEPSEEK),
        Source("llama.cpp", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", ALL, form=Form("text", None, _THINK), **_DEEPSEEK),
        Source("trl", "deepseekv3", ALL, form=Form("text", None, _THINK), **_DEEPSEEK),
    ),
    "deepseek3_1": (
        Source("llama.cpp", "deepseek-ai-DeepSeek-V3.1", ALL, form=Form(thought="<think>{thought}</think>"), thinking="thinking", **_DEEPSEEK),
    ),
    "deepseekcoder": (Source("llama.cpp", "deepseek-ai/deepseek-coder-33b-instruct", bos="<｜begin▁of▁sentence｜>"),),
    "llama3": (Source("trl", "llama3", bos="<|begin_of_text|>")),
}
