"""The API server and pydantic judge alike; what is accepted is defaulted alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_api.job import FineTuneJob
from finetune_api.validation import validate_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes.client import ApiException
from manifests import CASES, Case, finetunejob
from template_cases import TEMPLATE_CASES, TemplateCase, chat_template


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_verdict(server: Any, case: Case) -> None:
    refusal = server.refusal(case.manifest())
    if case.refused is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert case.refused in refusal


@pytest.mark.parametrize("case", TEMPLATE_CASES, ids=lambda case: case.sentence)
def test_verdict_on_a_template(server: Any, case: TemplateCase) -> None:
    refusal = server.refusal(chat_template(**case.fields), "chattemplates")
    if case.refused is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert case.refused in refusal


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2000),
    st.floats(-2, 2, allow_nan=False).filter(lambda number: not number.is_integer()),  # has a test of its own
    st.sampled_from(["", "auto", "x"]),
)
PATHS = (
    "dataset.maxLength",
    "dataset.packing",
    "method.lora.rank",
    "method.lora.alpha",
    "method.lora.dropout",
    "hyperparameters.epochs",
    "hyperparameters.microBatchSize",
    "hyperparameters.globalBatchSize",
    "hyperparameters.learningRate",
    "distributed.gpusPerNode",
    "precision",
    "template.name",
    "template.system",
    "resources.cpu",
    "output.claim.name",
    "evaluation.everySteps",
    "runPolicy.backoffLimit",
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.dictionaries(st.sampled_from(PATHS), SCALARS, min_size=1, max_size=3))
def test_both_judges_agree_on_whatever_is_written(server: Any, edits: dict[str, Any]) -> None:
    document = Case("", edits).manifest()
    ours = [str(finding) for finding in validate_manifest(document)]
    theirs = server.refusal(document)
    assert (theirs is None) == (ours == []), f"server: {theirs}\nmodel: {ours}"


def test_a_whole_number_with_a_point_is_refused_by_us_and_stored_without_it_by_the_server(server: Any) -> None:
    document = Case("", {"method.lora.rank": 8.0}).manifest()
    assert ["should be a valid integer, not 8.0" in str(finding) for finding in validate_manifest(document)] == [True]
    rank = server.create(document, dry_run=True)["spec"]["method"]["lora"]["rank"]
    assert (type(rank), rank) == (int, 8)


def test_the_server_fills_in_the_models_defaults(server: Any) -> None:
    stored = server.create(finetunejob("defaults"), dry_run=True)
    assert stored["spec"] == FineTuneJob.from_dict(finetunejob()).spec.to_dict()


class TestEdits:
    """A manifest edited after acceptance."""

    @pytest.fixture
    def job(self, server: Any) -> Any:
        name = "edited"
        server.create(finetunejob(name))
        yield name
        server.delete(name)

    @pytest.mark.parametrize(
        ("field", "spec"),
        [
            ("spec.model", {"model": {"source": "hf://org/other"}}),
            ("spec.dataset", {"dataset": {"maxLength": 99}}),
            ("spec.method", {"method": {"lora": {"rank": 99}}}),
            ("spec.precision", {"precision": "fp32"}),
            ("spec.hyperparameters", {"hyperparameters": {"learningRate": 0.5}}),
            ("spec.scheduling.profile", {"scheduling": {"profile": "other"}}),
            ("spec.scheduling.priorityClassName", {"scheduling": {"priorityClassName": "high"}}),
            ("spec.output", {"output": {"claim": {"size": "1Gi"}}}),
        ],
    )
    def test_is_refused_by_field(self, server: Any, job: str, field: str, spec: dict[str, Any]) -> None:
        with pytest.raises(ApiException, match=rf"{field}.*cannot be changed once") as caught:
            server.patch(job, {"spec": spec})
        assert caught.value.status == 422

    def test_may_change_the_run_policy(self, server: Any, job: str) -> None:
        changed = server.patch(job, {"spec": {"runPolicy": {"backoffLimit": 7}}})
        assert changed["spec"]["runPolicy"]["backoffLimit"] == 7

    def test_cannot_write_status_through_the_main_resource(self, server: Any, job: str) -> None:
        changed = server.patch(job, {"status": {"phase": "Succeeded"}})
        assert "status" not in changed


def test_columns_are_those_of_the_design(api: Any) -> None:
    request = api.param_serialize(
        "GET",
        "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs",
        header_params={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"},
        auth_settings=["BearerToken"],
    )
    columns = json.loads(api.call_api(*request).read())["columnDefinitions"]
    plain = [column["name"] for column in columns if column["priority"] == 0]
    assert plain == ["Name", "Model", "Method", "Phase", "Progress", "Loss", "Tok/s", "ETA", "Age"]
    assert [column["name"] for column in columns if column["priority"]] == ["GPUs", "Attempt", "Queue"]
