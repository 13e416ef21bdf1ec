"""ChatTemplates for tests: a valid one, and by a field of it every refusal that the API promises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]
DELETE = object()


def chat_template(name: str = "mine", **fields: Any) -> Manifest:
    """A valid ChatTemplate; ``fields`` of its spec replace what it has, or with DELETE remove it."""
    spec = {
        "formatSystem": ["<|system|>\n{{content}}<|end|>\n"],
        "formatUser": ["<|user|>\n{{content}}<|end|>\n<|assistant|>\n"],
        "formatAssistant": ["{{content}}<|end|>\n"],
        "stopWords": ["<|end|>"],
        **fields,
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ChatTemplate",
        "metadata": {"name": name},
        "spec": {key: value for key, value in spec.items() if value is not DELETE},
    }


@dataclass(frozen=True)
class TemplateCase:
    """Fields of a ChatTemplate beside the valid one's and, where it is refused, a piece of the refusal."""

    sentence: str
    fields: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None


TOOLS = {
    "toolFormat": "qwen",
    "formatFunction": ["{{content}}<|end|>\n"],
    "formatObservation": ["<|tool|>\n{{content}}<|end|>\n<|assistant|>\n"],
    "formatTools": ["{{content}}"],
}
TEMPLATE_CASES: tuple[TemplateCase, ...] = (
    TemplateCase("the smallest template"),
    TemplateCase("one with tools and thoughts", {**TOOLS, "thoughtWords": ["<think>", "</think>"]}),
    TemplateCase(
        "slots in pieces", {"formatUser": ["<|user|>", "{{content}}", "<|end|>"], "assistantHeader": ["<|a|>"]}
    ),
    TemplateCase("the number of a turn", {"formatUser": ["[{{idx}}] {{content}}<|end|>"]}),
    TemplateCase("an end between turns", {"formatAssistant": ["{{content}}"], "efficientEos": True}),
    TemplateCase(
        "no place for the question", {"formatUser": ["<|user|>"]}, "spec.formatUser: must hold {{content}} once"
    ),
    TemplateCase("two places", {"formatSystem": ["{{content}}", "{{content}}"]}, "spec.formatSystem: must hold"),
    TemplateCase("no place for a call", {**TOOLS, "formatFunction": ["<|end|>"]}, "spec.formatFunction: must hold"),
    TemplateCase("a number elsewhere", {"formatSystem": ["{{idx}} {{content}}"]}, "spec.formatSystem: holds {{idx}}"),
    TemplateCase("a message in the prefix", {"formatPrefix": ["{{content}}"]}, "spec.formatPrefix: holds {{content}}"),
    TemplateCase("a number in the header", {"assistantHeader": ["{{idx}}"]}, "spec.assistantHeader: holds"),
    TemplateCase("no end", {"stopWords": []}, "spec.stopWords: must name what ends an answer"),
    TemplateCase("an empty end", {"stopWords": ["<|end|>", ""]}, "spec.stopWords: holds an empty word"),
    TemplateCase("an end that no answer has", {"stopWords": ["</s>"]}, "spec.formatAssistant: must hold a stop word"),
    TemplateCase(
        "an end before the answer", {"formatAssistant": ["<|end|>{{content}}"]}, "must hold a stop word behind"
    ),
    TemplateCase("an end written twice", {"efficientEos": True}, "which efficientEos writes by itself"),
    TemplateCase(
        "an end that no call has", {**TOOLS, "formatFunction": ["{{content}}"]}, "spec.formatFunction: must hold"
    ),
    TemplateCase("calls in no format", {**TOOLS, "toolFormat": DELETE}, "spec.formatFunction: needs toolFormat"),
    TemplateCase("half a thought", {"thoughtWords": ["<think>"]}, "spec.thoughtWords: must be two"),
    TemplateCase("a slot that is missing", {"formatUser": DELETE}, "spec.formatUser"),
    TemplateCase("a field that is unknown", {"formatUsers": ["x"]}, "spec.formatUsers"),
)
