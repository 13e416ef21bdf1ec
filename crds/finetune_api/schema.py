"""From pydantic models to CustomResourceDefinitions: a strict converter to structural schemas.

pydantic emits JSON Schema, Kubernetes takes a narrower dialect (apiextensions.k8s.io/v1 "structural schema").
Whatever this converter does not know it refuses, so that nothing is lost on the way unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from finetune_api.base import GROUP, VERSION, ApiModel
from finetune_api.chat_template import ChatTemplate
from finetune_api.job import FineTuneJob
from finetune_api.profile import TrainingProfile
from finetune_api.rule import Rule
from finetune_api.rules import IMMUTABLE_FIELDS, IMMUTABLE_MESSAGE, RULES
from finetune_api.template_slots import SLOT_RULES

Schema = dict[str, Any]

_KEPT = frozenset(
    {
        "type",
        "enum",
        "pattern",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minimum",
        "maximum",
        "format",
        "description",
        "default",
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
    }
)
_DROPPED = frozenset({"title", "$defs"})


class SchemaError(ValueError):
    """A model says something that no structural schema can."""


@dataclass(frozen=True)
class Column:
    """A column of ``kubectl get``; ``wide`` ones show with ``-o wide``."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As an additionalPrinterColumn."""
        column: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        return column | {"priority": 1} if self.wide else column


@dataclass(frozen=True)
class Kind:
    """What a CRD says beside the schema."""

    model: type[ApiModel]
    plural: str
    short_names: tuple[str, ...]
    scope: str
    columns: tuple[Column, ...]

    @property
    def name(self) -> str:
        """The kind's name."""
        return self.model.__name__

    @property
    def has_status(self) -> bool:
        """Whether the kind has a status, hence the subresource."""
        return "status" in self.model.model_fields


_AGE = Column("Age", ".metadata.creationTimestamp", "date")
KINDS: tuple[Kind, ...] = (
    Kind(
        FineTuneJob,
        "finetunejobs",
        ("ftj",),
        "Namespaced",
        (
            Column("Model", ".spec.model.source"),
            Column("Method", ".status.method"),
            Column("Phase", ".status.phase"),
            Column("Progress", ".status.progress.display"),
            Column("Loss", ".status.progress.loss", "number"),
            Column("Tok/s", ".status.progress.tokensPerSecond", "number"),
            Column("ETA", ".status.progress.eta"),
            _AGE,
            Column("GPUs", ".status.gpus", "integer", wide=True),
            Column("Attempt", ".status.attempt", "integer", wide=True),
            Column("Queue", ".spec.scheduling.queueName", wide=True),
        ),
    ),
    Kind(
        ChatTemplate,
        "chattemplates",
        ("ct",),
        "Namespaced",
        (Column("Tools", ".spec.toolFormat"), _AGE),
    ),
    Kind(
        TrainingProfile,
        "trainingprofiles",
        ("tp",),
        "Cluster",
        (Column("Image", ".spec.image.repository"), _AGE),
    ),
)


def custom_resource_definition(kind: Kind) -> dict[str, Any]:
    """The CRD of ``kind`` as a dict ready for YAML.

    Raises:
        SchemaError: a model uses what a structural schema cannot express.
    """
    properties: Schema = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": model_schema(kind.model, "spec"),
    }
    if kind.model is FineTuneJob:
        _add_rules(properties["spec"])
        _add_slot_rules(_node_at(properties["spec"], "template.inline"), "spec.template.inline")
    if kind.model is ChatTemplate:
        _add_slot_rules(properties["spec"], "spec")
    required = ["spec"] if kind.model.model_fields["spec"].is_required() else []
    if not required:
        properties["spec"]["default"] = {}
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [column.to_dict() for column in kind.columns],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": (kind.model.__doc__ or "").strip(),
                "properties": properties,
            }
        },
    }
    if required:
        version["schema"]["openAPIV3Schema"]["required"] = required
    if kind.has_status:
        properties["status"] = model_schema(kind.model, "status")
        properties["status"].pop("default", None)
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": kind.scope,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": list(kind.short_names),
                "categories": ["finetune"],
            },
            "versions": [version],
        },
    }


def model_schema(model: type[ApiModel], field: str) -> Schema:
    """The structural schema of one field of ``model``.

    Raises:
        SchemaError: see :func:`custom_resource_definition`.
    """
    whole = model.model_json_schema(by_alias=True, mode="validation")
    definitions = whole.get("$defs", {})
    if "$ref" in whole:  # pydantic writes a model that refers to itself this way
        whole = definitions[whole["$ref"].rpartition("/")[2]]
    return _convert(whole["properties"][field], definitions, (field,))


def _convert(node: Schema, definitions: dict[str, Schema], trail: tuple[str, ...]) -> Schema:
    if len(trail) > 40:
        raise SchemaError(f"{'.'.join(trail[:6])}… refers to itself; a CRD cannot")
    node = dict(node)
    if "$ref" in node:
        target = definitions[node.pop("$ref").rpartition("/")[2]]
        node = {**target, **node}
    if "anyOf" in node:
        node = _without_null(node, trail)
        return _convert(node, definitions, trail)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    for bound, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in node:
            node[plain] = node.pop(bound)
            node[bound] = True
    out: Schema = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _convert(sub, definitions, (*trail, name)) for name, sub in value.items()}
        elif key == "items":
            out[key] = _convert(value, definitions, (*trail, "[]"))
        elif key == "additionalProperties":
            if isinstance(value, dict):
                out[key] = _convert(value, definitions, (*trail, "{}"))
            elif value and "x-kubernetes-preserve-unknown-fields" not in node:
                raise SchemaError(f"{'.'.join(trail)} is a map of anything; type its values")
        elif key in ("required", "exclusiveMinimum", "exclusiveMaximum") or key in _KEPT:
            out[key] = value
        elif key not in _DROPPED:
            raise SchemaError(f"{'.'.join(trail)} uses {key!r}, which a structural schema has not")
    if "default" in out:
        out["default"] = _without_nulls(out["default"])
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    if "type" not in out and "x-kubernetes-int-or-string" not in out:
        raise SchemaError(f"{'.'.join(trail)} has no type")
    return out


def _without_null(node: Schema, trail: tuple[str, ...]) -> Schema:
    """``T | None`` becomes ``T``: an unset field is left out in Kubernetes, never null."""
    members = [member for member in node["anyOf"] if member.get("type") != "null"]
    if len(members) != 1:
        raise SchemaError(f"{'.'.join(trail)} is a union; use optional members and a rule")
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    if "default" in rest and rest["default"] is None:
        del rest["default"]
    return {**members[0], **rest}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _node_at(spec: Schema, path: str) -> Schema:
    node = spec
    for part in [part for part in path.split(".") if part]:
        node = node["properties"][part.removesuffix("[]")]
        if part.endswith("[]"):
            node = node["items"]
    return node


def _add_rules(spec: Schema) -> None:
    for rule in RULES:
        node = _node_at(spec, rule.scope)
        node.setdefault("x-kubernetes-validations", []).append(_validation(rule, node))
    for path in IMMUTABLE_FIELDS:
        parent, _, name = path.rpartition(".")
        node = _node_at(spec, parent)
        same = f"self.{name} == oldSelf.{name}"
        if not _is_given(node, name):
            same = f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {same})"
        node.setdefault("x-kubernetes-validations", []).append(
            {
                "rule": same,
                "message": f"spec.{path}: {IMMUTABLE_MESSAGE}",
                "fieldPath": f".{name}",
                "reason": "FieldValueForbidden",
            }
        )


def _add_slot_rules(node: Schema, place: str) -> None:
    node["x-kubernetes-validations"] = [
        {
            "rule": f"!({rule.cel})",
            "message": f"{place}.{rule.field}: {rule.message}",
            "fieldPath": f".{rule.field}",
            "reason": "FieldValueInvalid",
        }
        for rule in SLOT_RULES
    ]


def _is_given(node: Schema, path: str) -> bool:
    """Whether the field at ``path`` from ``node`` is there wherever its parent is."""
    parent, _, name = path.rpartition(".")
    node = _node_at(node, parent)
    return name in node.get("required", []) or "default" in node["properties"][name]


def _validation(rule: Rule, node: Schema) -> Schema:
    return {
        "rule": f"!{rule.when.cel(partial(_is_given, node))}",
        "message": f"spec.{rule.path}: {rule.message}",
        "fieldPath": f".{rule.field}",
        "reason": "FieldValueInvalid" if rule.kind == "invalid" else "FieldValueForbidden",
    }
