"""What families write of which no published template is to be had, or none that writes calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conversations import ASKS, CALLS, CLOCK, SUN, TELLS
from finetune_trainer.messages import Message

TALK = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "Bye"),
    Message("assistant", "See you."),
)
CALL = (ASKS, CALLS, SUN, TELLS)


@dataclass(frozen=True)
class Example:
    """``text`` is what ``source`` makes of ``messages``."""

    source: str
    text: str
    messages: tuple[Message, ...] = TALK
    tools: tuple[dict[str, Any], ...] = ()


_CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you.<|im_end|>\n"
)
_VICUNA = "<s>Be brief. USER: Hi ASSISTANT: Hello!</s>USER: Bye ASSISTANT: See you.</s>"
_CLOCK = (
    '{"name": "get_time", "description": "Tells the time of a zone.", "parameters": {"type": "object", "properties": '
    '{"zone": {"type": "string", "description": "Its name"}}}}'
)

EXAMPLES: dict[str, Example] = {
    "smollm": Example("the tokenizer of SmolLM2-135M-Instruct", _CHATML),
    "minicpm_v": Example("the model card of MiniCPM-V 2.6", _CHATML),
    "llava_next": Example("the model card of llava-v1.6-vicuna-7b-hf", _VICUNA),
    "llava_next_video": Example("the model card of LLaVA-NeXT-Video-7B-hf", _VICUNA),
    "paligemma": Example("arXiv 2407.07726, section 3.2", "<bos>Be brief.\nHi\nHello!<eos><bos>Bye\nSee you.<eos>"),
    "phi4_mini": Example(
        "the model card of Phi-4-mini-instruct",
        "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>Bye<|end|><|assistant|>See you."
        "<|end|><|endoftext|>",
    ),
    "starchat": Example(
        "dialogues.py of StarChat",
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n<|user|>\nBye<|end|>\n"
        "<|assistant|>\nSee you.<|end|>\n",
    ),
    "solar": Example(
        "the model card of SOLAR-10.7B-Instruct-v1.0",
        "### System:\nBe brief.\n\n### User:\nHi\n\n### Assistant:\nHello!</s>\n\n### User:\nBye\n\n### Assistant:\n"
        "See you.</s>\n\n",
    ),
    "index": Example(
        "the tokenizer of Index-1.9B-Chat",
        "<unk>Be brief.reserved_0Hireserved_1Hello!</s>reserved_0Byereserved_1See you.</s>",
    ),
    "telechat": Example(
        "arXiv 2401.03804, the model's generation_utils.py and, for the system message, TeleChat2's template",
        "<_system>Be brief.\n<_user>Hi<_bot>Hello!<_end><_user>Bye<_bot>See you.<_end>",
    ),
    "xverse": Example(
        "modeling_xverse.py of XVERSE-13B-Chat",
        "Be brief.\n\nHuman: Hi\n\nAssistant: Hello!<|endoftext|>Human: Bye\n\nAssistant: See you.<|endoftext|>",
    ),
    "default": Example(
        "ours", "System: Be brief.\nHuman: Hi\nAssistant: Hello!</s>\nHuman: Bye\nAssistant: See you.</s>\n"
    ),
    "none": Example("ours", "Be brief.HiHello!</s>ByeSee you.</s>"),
}
"""By family."""

CALLING: dict[str, Example] = {
    "glm4": Example(
        "the tokenizer's own code of glm-4-9b-chat",
        "[gMASK]<sop><|system|>\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
        "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具\n\n## get_time\n\n"
        '{\n    "name": "get_time",\n    "description": "Tells the time of a zone.",\n    "parameters": {\n'
        '        "type": "object",\n        "properties": {\n            "zone": {\n'
        '                "type": "string",\n                "description": "Its name"\n'
        "            }\n        }\n    }\n}\n"
        "在调用上述函数时，请使用 Json 格式表示调用的参数。"
        "<|user|>\nHow is the weather in Zürich?<|assistant|>get_weather\n"
        '{"city": "Zürich", "days": 2}<|observation|>\n{"sky": "sun", "celsius": 21}'
        "<|assistant|>\nSunny, 21 °C.<|user|>",
        CALL,
        (CLOCK,),
    ),
    "kimi_k2": Example(
        "docs/tool_call_guidance.md of Kimi-K2",
        '<|im_system|>tool_declare<|im_middle|>[{"type": "function", "function": ' + _CLOCK + "}]<|im_end|>"
        "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>"
        "<|im_user|>user<|im_middle|>How is the weather in Zürich?<|im_end|><|im_assistant|>assistant<|im_middle|>"
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Zürich", "days": 2}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
        "<|im_system|>tool<|im_middle|>## Return of functions.get_weather:0\n"
        '{"sky": "sun", "celsius": 21}<|im_end|><|im_assistant|>assistant<|im_middle|>Sunny, 21 °C.<|im_end|>',
        CALL,
        (CLOCK,),
    ),
    "lfm2": Example(
        "the model card of LFM2-8B-A1B",
        "<|startoftext|><|im_start|>user\nHow is the weather in Zürich?<|im_end|>\n<|im_start|>assistant\n"
        '<|tool_call_start|>[get_weather(city="Zürich", days=2)]<|tool_call_end|><|im_end|>\n<|im_start|>tool\n'
        '<|tool_response_start|>{"sky": "sun", "celsius": 21}<|tool_response_end|><|im_end|>\n<|im_start|>assistant\n'
        "Sunny, 21 °C.<|im_end|>\n",
        CALL,
    ),
    "granite3_3": Example(
        "the model card of granite-3.3-8b-instruct",
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>"
        "How is the weather in Zürich?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|><|tool_call|>"
        '[\n    {\n        "name": "get_weather",\n        "arguments": {\n            "city": "Zürich",\n'
        '            "days": 2\n        }\n    }\n]<|end_of_text|>\n<|start_of_role|>tool_response<|end_of_role|>'
        '{"sky": "sun", "celsius": 21}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Sunny, 21 °C.'
        "<|end_of_text|>\n",
        (TALK[0], *CALL),
    ),
    "default": Example(
        "ours",
        "System: You may use these tools:\n" + _CLOCK + "\nTo use one, write a line for each call:\nAction: <name>\n"
        "Action Input: <arguments as a JSON object>\nHuman: How is the weather in Zürich?\n"
        "Assistant: Action: get_weather\n"
        'Action Input: {"city": "Zürich", "days": 2}</s>\nHuman: {"sky": "sun", "celsius": 21}\n'
        "Assistant: Sunny, 21 °C.</s>\n",
        CALL,
        (CLOCK,),
    ),
}
"""Of formats whose published template writes no calls, or not as the model was trained on them."""
