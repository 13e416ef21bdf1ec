"""CRD generation: structural, bounded, current."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.base import ApiModel
from finetune_api.schema import KINDS, SchemaError, custom_resource_definition, model_schema

ROOT = Path(__file__).resolve().parents[3]


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from nodes(node[key], f"{path}[]")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_field_is_documented_and_spec_is_bounded(kind: Any) -> None:
    schema = custom_resource_definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in nodes(schema["properties"]["spec"]):
        if path and not path.endswith("[]"):
            assert node.get("description"), f"{path} is not documented"
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, f"{path} is not bounded"
        if node.get("type") == "array":
            assert "maxItems" in node, f"{path} is not bounded"


def test_rules_ask_only_for_fields_that_may_be_missing() -> None:
    """Each look at a field costs the API server some time, at every write of a status too."""
    spec = custom_resource_definition(KINDS[0])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][
        "spec"
    ]
    every = dict(nodes(spec))
    asked = {
        path
        for rule in spec["x-kubernetes-validations"]
        for path in re.findall(r"has\(self((?:\.\w+)+)\)", rule["rule"])
    }
    assert {".quantization", ".method.lora"} <= asked
    for path in asked:
        parent, _, name = path.rpartition(".")
        assert name not in every[parent].get("required", []), path
        assert "default" not in every[path], path


def test_the_checked_in_files_are_what_the_models_say() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "hack/generate"), "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


class _Union(ApiModel):
    value: int | str


class _Map(ApiModel):
    value: dict[str, Any]


class _Tuple(ApiModel):
    value: tuple[int, str]


class _Recursive(ApiModel):
    children: list[_Recursive] = []


@pytest.mark.parametrize(
    ("model", "field", "says"),
    [
        (_Union, "value", "union"),
        (_Map, "value", "map of anything"),
        (_Tuple, "value", "prefixItems"),
        (_Recursive, "children", "refers to itself"),
    ],
)
def test_what_a_structural_schema_cannot_say_is_refused(model: type[ApiModel], field: str, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        model_schema(model, field)
