"""Validation without a cluster, with the API server's verdicts: types and bounds by pydantic, rules by the table."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_api.base import API_VERSION, ApiModel
from finetune_api.chat_template import ChatTemplate
from finetune_api.job import FineTuneJob, FineTuneJobSpec
from finetune_api.predicates import lookup
from finetune_api.profile import TrainingProfile
from finetune_api.rule import SOURCES, Rule
from finetune_api.rules import RULES
from finetune_api.template_slots import slot_problems
from finetune_api.trainer_config import TrainerConfig
from finetune_api.uris import parse_uri

KINDS: dict[str, type[ApiModel]] = {
    "FineTuneJob": FineTuneJob,
    "ChatTemplate": ChatTemplate,
    "TrainingProfile": TrainingProfile,
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: the field from the document's root, such as ``spec.method.lora.rank``, and why."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def validate_manifest(document: dict[str, Any], *, local: bool = False) -> list[Finding]:
    """Everything that is wrong with a manifest of one of our kinds; empty where it would be accepted.

    Args:
        document: the manifest as parsed from YAML.
        local: judge for ``finetune run``, which may read ``file://``.
    """
    if document.get("apiVersion") != API_VERSION:
        return [Finding("apiVersion", f"must be {API_VERSION}, not {document.get('apiVersion')!r}")]
    kind = document.get("kind")
    model = KINDS.get(str(kind))
    if model is None:
        return [Finding("kind", f"must be one of {', '.join(KINDS)}, not {kind!r}")]
    try:
        parsed = model.model_validate(document)
    except ValidationError as error:
        return [_finding(details, model) for details in error.errors()]
    if isinstance(parsed, FineTuneJob):
        return validate_spec(parsed.spec, local=local)
    if isinstance(parsed, ChatTemplate):
        return [Finding(f"spec.{field}", problem) for field, problem in slot_problems(parsed.spec)]
    return []


def validate_spec(spec: FineTuneJobSpec, *, local: bool = False) -> list[Finding]:
    """Every rule of the table that ``spec``, well-typed by itself, breaks."""
    found = _by_the_table(spec.to_dict(), local=local)
    if spec.template.inline is not None:
        found += [
            Finding(f"spec.template.inline.{field}", problem) for field, problem in slot_problems(spec.template.inline)
        ]
    return [*found, *_malformed_uris(spec)]


def validate_config(config: TrainerConfig) -> list[Finding]:
    """Every rule of the table that ``config`` breaks, a spec resolved: the trainer's own judge, and that of a strategy
    which is chosen when the model is known. Rules about what only clusters have are left out."""
    return _by_the_table(config.as_spec(), local=True)


def _by_the_table(data: dict[str, Any], *, local: bool) -> list[Finding]:
    return [
        Finding(f"spec.{place}", rule.message)
        for rule in RULES
        if not (rule.cluster_only and local)
        for place in _broken(rule, data)
    ]


def _broken(rule: Rule, data: dict[str, Any]) -> Iterator[str]:
    if rule.scope != SOURCES:
        if rule.when.holds(data):
            yield rule.field
        return
    for index, item in enumerate(lookup(data, SOURCES.removesuffix("[]"))):
        if rule.when.holds(item):
            yield f"{SOURCES.removesuffix('[]')}[{index}].{rule.field}"


def _malformed_uris(spec: FineTuneJobSpec) -> Iterator[Finding]:
    uris = [("spec.model.source", spec.model.source)]
    uris += [(f"spec.dataset.sources[{i}].uri", source.uri) for i, source in enumerate(spec.dataset.sources)]
    for field, uri in uris:
        try:
            parse_uri(uri)
        except ValueError as error:
            yield Finding(field, str(error))


def _finding(details: ErrorDetails, model: type[ApiModel]) -> Finding:
    parts: list[str] = []
    for part in details["loc"]:
        if isinstance(part, int):
            parts[-1] = f"{parts[-1]}[{part}]"
        elif part not in ("int", "str"):  # the members of a union are pydantic's affair
            parts.append(part)
    field = ".".join(parts)
    if details["type"] == "extra_forbidden":
        return Finding(field, f"unknown field{_suggestion(parts, model)}")
    if details["type"] == "missing":
        return Finding(field, "is required")
    message = re.sub(r"^Input should", "should", details["msg"])
    return Finding(field, f"{message}, not {details['input']!r}")


def _suggestion(parts: list[str], model: type[ApiModel]) -> str:
    names = _field_names(parts[:-1], model)
    near = difflib.get_close_matches(parts[-1], names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(names)}" if names else ""


def _field_names(parts: list[str], model: type[ApiModel]) -> list[str]:
    node: Any = model
    for part in parts:
        name = part.split("[")[0]
        field = next((f for f in node.model_fields.values() if f.alias == name), None)
        if field is None:
            return []
        found = _models_in(field.annotation)
        if not found:
            return []
        node = found[0]
    return [field.alias or name for name, field in node.model_fields.items()]


def _models_in(annotation: Any) -> list[type[ApiModel]]:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return [annotation]
    return [model for arg in getattr(annotation, "__args__", ()) for model in _models_in(arg)]
