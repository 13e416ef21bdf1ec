"""The table of rules, judged by pydantic and Python."""

from __future__ import annotations

import pytest
from finetune_api.docs import compatibility_page
from finetune_api.job import FineTuneJobSpec
from finetune_api.rules import IMMUTABLE_FIELDS, RULES
from finetune_api.template_slots import SLOT_RULES
from finetune_api.validation import validate_manifest
from manifests import CASES, Case, finetunejob
from template_cases import TEMPLATE_CASES, TemplateCase, chat_template


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_verdict(case: Case) -> None:
    findings = [str(finding) for finding in validate_manifest(case.manifest())]
    if case.refused is None:
        assert findings == []
    else:
        assert any(case.refused in finding for finding in findings), findings


@pytest.mark.parametrize("case", TEMPLATE_CASES, ids=lambda case: case.sentence)
def test_verdict_on_a_template(case: TemplateCase) -> None:
    findings = [str(finding) for finding in validate_manifest(chat_template(**case.fields))]
    if case.refused is None:
        assert findings == []
    else:
        assert any(case.refused in finding for finding in findings), findings


def test_every_rule_on_a_template_has_a_case_that_breaks_it() -> None:
    messages = {f.message for case in TEMPLATE_CASES for f in validate_manifest(chat_template(**case.fields))}
    assert [rule.message for rule in SLOT_RULES if rule.message not in messages] == []


def test_every_rule_has_a_case_that_breaks_it() -> None:
    messages = {str(f).partition(": ")[2] for case in CASES for f in validate_manifest(case.manifest())}
    assert [rule.message for rule in RULES if rule.message not in messages] == []


def test_local_runs_may_read_this_machines_disk() -> None:
    manifest = finetunejob(model__source="file:///models/x")
    assert validate_manifest(manifest, local=True) == []
    assert validate_manifest(manifest, local=False) != []


def test_an_unknown_field_is_answered_with_the_nearest_name() -> None:
    (finding,) = validate_manifest(finetunejob(method__lora={"rnak": 8}))
    assert finding.field == "spec.method.lora.rnak"
    assert "did you mean rank?" in finding.message


def test_a_rule_in_a_list_names_the_item() -> None:
    manifest = finetunejob()
    manifest["spec"]["dataset"]["sources"].append({"uri": "file:///rows.jsonl"})
    (finding,) = validate_manifest(manifest)
    assert finding.field == "spec.dataset.sources[1].uri"


@pytest.mark.parametrize("key", ["apiVersion", "kind"])
def test_another_group_or_kind_is_refused(key: str) -> None:
    (finding,) = validate_manifest(finetunejob() | {key: "other"})
    assert finding.field == key


def test_all_of_the_spec_is_immutable_but_run_policy_and_queue() -> None:
    by_top = {path.partition(".")[0] for path in IMMUTABLE_FIELDS}
    fields = {field.alias for field in FineTuneJobSpec.model_fields.values()}
    assert fields - by_top == {"runPolicy"}
    scheduling = {path.removeprefix("scheduling.") for path in IMMUTABLE_FIELDS if path.startswith("scheduling.")}
    all_scheduling = {f.alias for f in FineTuneJobSpec.model_fields["scheduling"].annotation.model_fields.values()}
    assert all_scheduling - scheduling == {"queueName"}


@pytest.mark.parametrize(
    "row",
    [
        "| full | yes | yes | yes | yes | yes |",
        "| bitsandbytes, 8 bits | yes | yes | yes | no | no |",
        "| `precision: fp8` | yes | not yet | not yet | not yet | not yet |",
    ],
)
def test_the_page_tells_what_goes_with_a_strategy_and_what_may_later(row: str) -> None:
    assert row in compatibility_page().splitlines()


def test_what_is_not_supported_yet_says_so_and_what_to_do() -> None:
    for rule in RULES:
        assert rule.message.startswith("not supported yet: ") == (rule.kind == "unsupported"), rule.message
