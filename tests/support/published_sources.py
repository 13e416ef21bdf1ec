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
    parts: bool = False
    """Whether texts come in parts, as beside pictures."""


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
    parts: tuple[str, ...] = ()
    """What beside text it is held to."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Others, given to both sides."""
    adds_bos: bool = False
    """Whether it leaves ``bos`` to the tokenizer, which puts it before the text."""
    lists_tools: bool = True
    """Whether it writes which functions there are; one that does not is held to the calls alone."""


_THINK = "<think>\n{thought}\n</think>"
_DEEPSEEK: dict[str, Any] = {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>", "lists_tools": False}

_S: dict[str, Any] = {"bos": "<s>", "eos": "</s>"}

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
    "qwen3_vl": (Source("trl", "qwen3_vl", TOOLS, parts=("image", "video")),),
    "qwen3_5": (Source("trl", "qwen3_5_think", ALL, parts=("image", "video"), thinking="enable_thinking"),),
    "qwen3_5_nothink": (Source("trl", "qwen3_5_nothink", ALL, parts=("image", "video"), thinking="enable_thinking"),),
    "qwen3_6": (Source("trl", "qwen3_6", ALL, parts=("image", "video"), thinking="enable_thinking"),),
    "qwen2_vl": (
        Source("trl", "qwen2_5_vl", parts=("image", "video")),
        Source("axolotl", "qwen2_vl", parts=("image", "video")),
    ),
    "deepseek": (Source("llama.cpp", "DeepSeek-V2", **_DEEPSEEK),),
    "deepseek3": (Source("axolotl", "deepseek_v3", TOOLS, form=Form(arguments="text", nothing=None), **_DEEPSEEK),),
    "deepseekr1": (
        Source("trl", "deepseek_r1_distill", ALL, form=Form("text", None, _THINK), **_DEEPSEEK),
        Source(
            "llama.cpp", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", ALL, form=Form("text", None, _THINK), **_DEEPSEEK
        ),
        Source("trl", "deepseekv3", ALL, form=Form("text", None, _THINK), **_DEEPSEEK),
    ),
    "deepseek3_1": (
        Source(
            "llama.cpp",
            "deepseek-ai-DeepSeek-V3.1",
            ALL,
            form=Form(thought="<think>{thought}</think>"),
            thinking="thinking",
            **_DEEPSEEK,
        ),
    ),
    "deepseekcoder": (Source("llama.cpp", "deepseek-ai/deepseek-coder-33b-instruct", bos="<｜begin▁of▁sentence｜>"),),
    "llama3": (Source("trl", "llama3", bos="<|begin_of_text|>"),),
    "llama3_1": (
        Source("llama.cpp", "meta-llama-Llama-3.1-8B-Instruct", TOOLS, bos="<|begin_of_text|>"),
        Source("llama.cpp", "meta-llama-Llama-3.3-70B-Instruct", TOOLS, bos="<|begin_of_text|>"),
        Source("trl", "llama3_1", TOOLS, bos="<|begin_of_text|>"),
    ),
    "llama3_2": (
        Source("llama.cpp", "meta-llama-Llama-3.2-3B-Instruct", TOOLS, bos="<|begin_of_text|>"),
        Source("trl", "llama3_2", TOOLS, bos="<|begin_of_text|>"),
    ),
    "mllama": (Source("axolotl", "llama3_2_vision", TOOLS, bos="<|begin_of_text|>"),),
    "llama4": (Source("axolotl", "llama4", TOOLS, parts=("image",), bos="<|begin_of_text|>"),),
    "mistral_v1": (
        Source("llama.cpp", "mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1' template with a system prompt)", **_S),
        Source("axolotl", "mistral_v1", **_S),
    ),
    "mistral": (
        Source("axolotl", "mistral_v2v3", TOOLS, **_S),
        Source(
            "llama.cpp",
            "Mistral-Large-Instruct-2407 (mistralai 'v3' template; modified to have system prompt at start)",
            TOOLS,
            **_S,
        ),
    ),
    "mistral_tekken": (
        Source("llama.cpp", "mistralai-Mistral-Nemo-Instruct-2407", TOOLS, **_S),
        Source("axolotl", "mistral_v3_tekken", TOOLS, **_S),
    ),
    "mistral_v7": (Source("llama.cpp", "mistralai/Mistral-Large-Instruct-2411 (mistralai 'v7' template)", **_S),),
    "mistral_small": (
        Source("llama.cpp", "Mistral-Small-3.2-24B-Instruct-2506", TOOLS, parts=("image",), **_S),
        Source("axolotl", "mistral_v7_tekken", parts=("image",), **_S),
    ),
    "pixtral": (Source("axolotl", "pixtral", parts=("image",), **_S),),
    "gemma": (Source("trl", "gemma", bos="<bos>"),),
    "gemma2": (Source("llama.cpp", "google-gemma-2-2b-it", bos="<bos>"),),
    "gemma3": (Source("trl", "gemma3", parts=("image",), bos="<bos>"),),
    "gemma4": (
        Source("trl", "gemma4_v5", ALL, parts=("image", "video", "audio"), bos="<bos>", thinking="enable_thinking"),
    ),
    "gemma3n": (Source("axolotl", "gemma3n", parts=("image", "audio"), bos="<bos>"),),
    "phi3": (
        Source("trl", "phi3", eos="<|endoftext|>"),
        Source("trl", "phi3_5", eos="<|endoftext|>"),
        Source("llama.cpp", "microsoft-Phi-3.5-mini-instruct", eos="<|endoftext|>"),
    ),
    "phi3_small": (Source("llama.cpp", "Phi-3-small", bos="<|endoftext|>", eos="<|endoftext|>"),),
    "phi3_vision": (Source("llama.cpp", "Phi-3-vision"),),
    "phi4": (Source("llama.cpp", "phi-4"),),
    "phi4_reasoning": (Source("axolotl", "phi_4"),),
    "chatglm2": (Source("vllm", "template_chatglm2", bos="[gMASK]sop", adds_bos=True),),
    "chatglm3": (Source("llama.cpp", "ChatGLM3"),),
    "glm4": (Source("llama.cpp", "ChatGLM4"),),
    "glm_edge": (Source("llama.cpp", "GLMEdge"),),
    "glm4_moe": (
        Source("trl", "glm4moe", ALL, thinking="enable_thinking"),
        Source("llama.cpp", "GLM-4.6", ALL, thinking="enable_thinking"),
    ),
    "command_r": (
        Source("llama.cpp", "CohereForAI/c4ai-command-r-plus", bos="<BOS_TOKEN>"),
        Source("llama.cpp", "CohereForAI-c4ai-command-r-plus-tool_use", ("tools", "parallel"), bos="<BOS_TOKEN>"),
    ),
    "cohere": (Source("trl", "cohere", bos="<BOS_TOKEN>"), Source("axolotl", "aya", bos="<BOS_TOKEN>")),
    "granite3": (
        Source("vllm", "tool_chat_template_granite", TOOLS),
        Source("llama.cpp", "ibm-granite/granite-3.0-8b-instruct"),
    ),
    "granite4": (Source("llama.cpp", "ibm-granite-granite-4.0", TOOLS),),
    "vicuna": (Source("fschat", "vicuna_v1.1", adds_bos=True, **_S),),
    "llava": (Source("axolotl", "llava", parts=("image",), adds_bos=True, **_S),),
    "llava_next_mistral": (Source("trl", "llava_next", parts=("image",), form=Form(parts=True), adds_bos=True, **_S),),
    "alpaca": (Source("axolotl", "alpaca", **_S),),
    "falcon": (Source("fschat", "falcon-chat"), Source("vllm", "template_falcon_180b")),
    "orion": (Source("llama.cpp", "OrionStarAI/Orion-14B-Chat", **_S),),
    "openchat": (Source("llama.cpp", "openchat/openchat-3.5-0106", **_S),),
    "zephyr": (Source("fschat", "zephyr"),),
    "exaone": (Source("axolotl", "exaone"),),
    "megrez": (Source("llama.cpp", "Infinigence/Megrez-3B-Instruct"),),
    "baichuan2": (Source("vllm", "template_baichuan"), Source("fschat", "baichuan2-chat")),
    "baichuan": (Source("fschat", "baichuan-chat"),),
    "internlm": (Source("fschat", "internlm-chat"),),
    "internlm2": (Source("vllm", "tool_chat_template_internlm2_tool", TOOLS, **_S),),
    "yi": (Source("fschat", "Yi-34b-chat"),),
    "minicpm": (Source("llama.cpp", "MiniCPM-3B-OpenHermes-2.5-v2-GGUF", adds_bos=True, **_S),),
    "teleflm": (Source("vllm", "template_teleflm"),),
    "yuan": (Source("fschat", "yuan2"),),
    "falcon_h1": (Source("axolotl", "falcon_h1", bos="<|begin_of_text|>"),),
    "ling": (Source("llama.cpp", "inclusionAI/Ling-lite"),),
    "metharme": (Source("axolotl", "metharme", **_S),),
    "gpt_oss": (
        Source("llama.cpp", "openai-gpt-oss-120b", ALL, form=Form(thought="thinking")),
        Source("trl", "gptoss", ALL, form=Form(thought="thinking")),
    ),
    "granite3_3": (Source("llama.cpp", "ibm-granite-granite-3.3-2B-Instruct", TOOLS),),
    "qwq": (
        Source(
            "llama.cpp", "Qwen-QwQ-32B", ALL, form=Form(thought=f"{_THINK}\n\n"), variables={"enable_thinking": True}
        ),
    ),
    "qwen3_coder": (Source("llama.cpp", "Qwen3-Coder", TOOLS),),
    "cohere2": (Source("trl", "cohere2", bos="<BOS_TOKEN>"),),
    "exaone4": (Source("axolotl", "exaone4", ALL, thinking="enable_thinking", variables={"skip_think": False}),),
    "lfm2": (
        Source("llama.cpp", "LFM2-8B-A1B", TOOLS, bos="<|startoftext|>"),
        Source("trl", "lfm2", TOOLS, bos="<|startoftext|>"),
    ),
    "kimi_vl": (Source("llama.cpp", "moonshotai-Kimi-K2", parts=("image",)),),
    "kimi_k2": (Source("llama.cpp", "Kimi-K2-Instruct", TOOLS, parts=("image",)),),
    "idefics3": (Source("trl", "idefics3", form=Form(parts=True)),),
    "smolvlm": (Source("trl", "smolvlm", form=Form(parts=True)),),
    "seed_oss": (
        Source("llama.cpp", "ByteDance-Seed-OSS"),
        Source("llama.cpp", "ByteDance-Seed/Seed-OSS-36B-Instruct", bos="<seed:bos>", eos="<seed:eos>"),
    ),
    "nemotron_h": (Source("axolotl", "nemotron_h"),),
    "minicpm_v4_5": (Source("vllm", "template_minicpmv45", ALL, thinking="enable_thinking"),),
    "llama2": (Source("fschat", "llama-2", adds_bos=True, **_S),),
    "llama2_zh": (Source("fschat", "chinese-alpaca2", adds_bos=True, **_S),),
    "glm4_7": (Source("llama.cpp", "GLM-4.7-Flash", ALL, thinking="enable_thinking"),),
    "qwen2_audio": (Source("transformers", "qwen2_audio", parts=("audio",)),),
    "minimax2": (Source("llama.cpp", "MiniMax-M2", ALL),),
}
