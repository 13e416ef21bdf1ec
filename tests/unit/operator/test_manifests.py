"""What the operator makes: restricted pods, owned children, names that fit."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from finetune_api.profile import TrainingProfileSpec
from finetune_api.trainer_config import COORDINATOR_ENV, NODE_RANK_ENV, TrainerConfig
from finetune_operator.core import manifests, names
from finetune_operator.core.plan import Plan, Refused
from finetune_operator.core.pods import quantity
from hypothesis import given
from hypothesis import strategies as st
from operator_bodies import SETTINGS, UID, job_body, plan_of


def prepare(plan: Plan) -> dict[str, Any]:
    return manifests.prepare_job(plan, config="config", progress_url=SETTINGS.progress_url)


def train(plan: Plan, attempt: int = 1) -> dict[str, Any]:
    return manifests.train_job(plan, attempt=attempt, config="config", progress_url=SETTINGS.progress_url)


def pod(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


def container(job: dict[str, Any]) -> dict[str, Any]:
    only: dict[str, Any] = pod(job)["containers"][0]
    return only


def environment(job: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container(job)["env"]}


def violations_of_restricted(spec: dict[str, Any]) -> list[str]:
    """What Kubernetes' Pod Security standard "restricted" has against a pod."""
    found = []
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found += [f"volume {v['name']}" for v in spec["volumes"] if not (v.keys() - {"name"}) <= allowed]
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    whole = spec.get("securityContext", {})
    for one in spec["containers"]:
        own = one.get("securityContext", {})
        merged = {**whole, **own}
        if merged.get("runAsNonRoot") is not True or merged.get("runAsUser") == 0:
            found.append("root")
        if merged.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            found.append("seccomp")
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append("privilege")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            found.append("capabilities")
        if any(port.get("hostPort") for port in one.get("ports", [])):
            found.append("hostPort")
    return found


@pytest.mark.parametrize("build", [prepare, train])
def test_pods_meet_the_restricted_standard_and_more(build: Any) -> None:
    job = build(plan_of())
    assert violations_of_restricted(pod(job)) == []
    assert container(job)["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod(job)["automountServiceAccountToken"] is False


def test_the_check_itself_finds_what_is_not_restricted() -> None:
    spec = pod(train(plan_of()))
    spec["containers"][0]["securityContext"]["capabilities"] = {"drop": []}
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    assert violations_of_restricted(spec) == ["volume host", "capabilities"]


def test_gpus_are_asked_for_in_the_train_job_alone() -> None:
    plan = plan_of(job_body(distributed__gpusPerNode=1))
    assert container(train(plan))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in json.dumps(prepare(plan))


def test_several_gpus_are_one_pod_s_request_and_reach_the_trainer() -> None:
    plan = plan_of(job_body(distributed={"gpusPerNode": 4, "strategy": "zero3"}, resources={"sharedMemory": "16Gi"}))
    job = train(plan)
    assert container(job)["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert job["spec"]["parallelism"] == 1
    (shared,) = [volume for volume in pod(job)["volumes"] if volume["name"] == "shm"]
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    config = TrainerConfig.model_validate_json(manifests.config_map(plan, name="c")["data"]["config.json"])
    assert (config.distributed.gpus_per_node, config.distributed.strategy) == (4, "zero3")


def test_several_nodes_meet_at_the_first_pod_of_their_attempt() -> None:
    plan = plan_of(job_body(distributed={"nodes": 3, "gpusPerNode": 8}, output={"claim": {"name": "shared"}}))
    job = train(plan, attempt=2)
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (3, 3)
    variables = {one["name"]: one for one in container(job)["env"]}
    assert variables[COORDINATOR_ENV]["value"] == f"tune-train-2-0.{pod(job)['subdomain']}.team.svc:29500"
    assert manifests.service(plan)["metadata"]["name"] == pod(job)["subdomain"]
    index = variables[NODE_RANK_ENV]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert COORDINATOR_ENV not in json.dumps(prepare(plan))
    assert COORDINATOR_ENV not in json.dumps(train(plan_of()))


def test_all_but_claims_and_the_authority_are_owned_by_the_job() -> None:
    plan = plan_of()
    for body in (prepare(plan), train(plan), manifests.service(plan), manifests.config_map(plan, name="c")):
        (owner,) = body["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("FineTuneJob", UID, True)
    for body in (*manifests.claims(plan), manifests.authority("team", "PEM")):
        assert "ownerReferences" not in body["metadata"], "results and what jobs share outlive each job"


def test_an_existing_output_claim_is_used_and_none_is_made() -> None:
    plan = plan_of(job_body(output__claim__name="mine"))
    assert [claim["metadata"]["name"] for claim in manifests.claims(plan)] == ["finetune-cache"]
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in pod(train(plan))["volumes"] if "persistentVolumeClaim" in v
    ]
    assert claims == ["finetune-cache", "mine"]


def test_sources_are_where_the_configuration_says() -> None:
    sources = [{"uri": "configmap://rows/a.jsonl"}, {"uri": "pvc://data/dir/b.jsonl"}, {"uri": "hf://org/set/c.jsonl"}]
    body = job_body(model={"source": "pvc://models/smol"}, dataset={"sources": sources})
    plan = plan_of(body)
    mounts = {m["mountPath"]: m for m in container(train(plan))["volumeMounts"]}
    volumes = {v["name"]: v for v in pod(train(plan))["volumes"]}
    assert [s.path for s in plan.config.sources] == [
        "/finetune/sources/0/a.jsonl",
        "/finetune/sources/1/dir/b.jsonl",
        None,
    ]
    assert [s.root for s in plan.config.sources] == ["/finetune/sources/0", "/finetune/sources/1", None]
    assert plan.config.model.path == "/finetune/model/smol"
    of_map = volumes[mounts["/finetune/sources/0"]["name"]]["configMap"]
    assert of_map == {"name": "rows", "items": [{"key": "a.jsonl", "path": "a.jsonl"}]}
    assert volumes[mounts["/finetune/sources/1"]["name"]]["persistentVolumeClaim"]["claimName"] == "data"
    assert all(mounts[path]["readOnly"] for path in ("/finetune/sources/0", "/finetune/sources/1", "/finetune/model"))


def test_a_claim_with_two_ends_is_one_volume() -> None:
    body = job_body(model={"source": "pvc://shared/m"}, dataset={"sources": [{"uri": "pvc://shared/d.jsonl"}]})
    plan = plan_of(body | {"spec": body["spec"] | {"output": {"claim": {"name": "shared"}}}})
    claims = [v for v in pod(train(plan))["volumes"] if "persistentVolumeClaim" in v]
    assert [v["persistentVolumeClaim"]["claimName"] for v in claims] == ["finetune-cache", "shared"]


def test_secrets_are_references_and_never_values() -> None:
    plan = plan_of(job_body(model={"source": "hf://org/m", "secretRef": {"name": "hub", "key": "t"}}))
    assert environment(train(plan))["FINETUNE_MODEL_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "t"}}
    assert plan.config.model.token_env == "FINETUNE_MODEL_TOKEN"


def test_credentials_of_a_store_are_references_too_and_those_that_it_may_lack_are_optional() -> None:
    sources = [{"uri": "hf://org/set"}, {"uri": "s3://bucket/rows.jsonl", "secretRef": {"name": "store"}}]
    plan = plan_of(job_body(dataset={"sources": sources}))
    variables = environment(prepare(plan))
    for name, optional in (("AWS_ACCESS_KEY_ID", False), ("AWS_SECRET_ACCESS_KEY", False), ("AWS_SESSION_TOKEN", True),
                           ("AWS_REGION", True), ("AWS_ENDPOINT_URL", True)):  # fmt: skip
        reference = {"name": "store", "key": name} | ({"optional": True} if optional else {})
        assert variables[f"FINETUNE_SOURCE_1_{name}"] == {"secretKeyRef": reference}
    assert [(s.token_env, s.credentials_env) for s in plan.config.sources] == [
        (None, None),
        (None, "FINETUNE_SOURCE_1_"),
    ]


def test_what_is_said_of_a_source_reaches_the_trainer() -> None:
    source = {"uri": "https://host/rows.jsonl", "secretRef": {"name": "s"}, "sha256": "a" * 64, "weight": 2}
    plan = plan_of(job_body(dataset={"sources": [source], "onError": "skip"}))
    (found,) = plan.config.sources
    assert (found.sha256, found.weight, found.token_env, plan.config.on_error) == (
        "a" * 64, 2.0, "FINETUNE_SOURCE_0_TOKEN", "skip"
    )  # fmt: skip


def test_a_profile_cannot_overwrite_the_contract() -> None:
    profile = TrainingProfileSpec(environment={"HF_ENDPOINT": "https://mirror", "FINETUNE_ATTEMPT": "9"})
    variables = environment(train(plan_of(profile=profile), attempt=2))
    assert (variables["HF_ENDPOINT"], variables["FINETUNE_ATTEMPT"]) == ("https://mirror", "2")


def test_progress_goes_to_this_job_with_a_bound_token() -> None:
    job = train(plan_of())
    variables = environment(job)
    url = "https://operator.system.svc:8443/v1/namespaces/team/finetunejobs/tune/progress"
    assert variables["FINETUNE_PROGRESS_URL"] == variables["KUBEFLOW_TRAINER_SERVER_URL"] == url
    (volume,) = [v for v in pod(job)["volumes"] if v["name"] == "operator"]
    token, authority = volume["projected"]["sources"]
    assert token["serviceAccountToken"] == {"audience": "finetune-operator", "expirationSeconds": 3600, "path": "token"}
    assert authority["configMap"]["optional"] is True
    assert "FINETUNE_PROGRESS_URL" not in environment(prepare(plan_of()))


def test_the_pod_has_time_to_save_a_checkpoint() -> None:
    plan = plan_of(job_body(runPolicy={"checkpointOnTerminationSeconds": 120}))
    assert pod(train(plan))["terminationGracePeriodSeconds"] > 120


def test_an_attempt_is_one_pod_a_node_and_is_never_repeated_by_its_job() -> None:
    spec = train(plan_of())["spec"]
    assert (spec["backoffLimit"], spec["completionMode"], spec["completions"], spec["parallelism"]) == (
        0,
        "Indexed",
        1,
        1,
    )
    assert {rule["action"] for rule in spec["podFailurePolicy"]["rules"]} == {"FailJob"}


def test_the_prepare_job_ends_at_once_on_what_no_retry_mends() -> None:
    rules = prepare(plan_of())["spec"]["podFailurePolicy"]["rules"]
    final = next(rule for rule in rules if "onExitCodes" in rule)["onExitCodes"]
    assert final["operator"] == "In"
    assert 15 in final["values"], "DatasetInvalid"
    assert not {0, 1, 25, 40} & set(final["values"]), "success, a crash, an unreachable hub and an interruption are not"


def test_remote_code_needs_the_profile() -> None:
    body = job_body(model={"source": "hf://org/m", "trustRemoteCode": True})
    with pytest.raises(Refused, match="allowTrustRemoteCode") as refused:
        plan_of(body)
    assert refused.value.reason == "NotAllowed"
    allowed = TrainingProfileSpec.model_validate({"security": {"allowTrustRemoteCode": True}})
    assert plan_of(body, allowed).config.model.trust_remote_code is True


@pytest.mark.parametrize(
    ("uri", "said"),
    [("pvc://claim/../etc/passwd", "must not lead out"), ("configmap://rows/a/b", "keys have no '/'")],
)
def test_paths_that_cannot_be_mounted_are_refused(uri: str, said: str) -> None:
    with pytest.raises(Refused, match=said) as refused:
        plan_of(job_body(dataset={"sources": [{"uri": uri}]}))
    assert "spec.dataset.sources[0].uri" in refused.value.message


def test_the_configuration_is_named_by_its_hash_and_read_back_whole() -> None:
    plan = plan_of()
    body = manifests.config_map(plan, name=names.config_map(plan.name, plan.config.digest()))
    assert body["immutable"] is True
    assert TrainerConfig.model_validate_json(body["data"]["config.json"]) == plan.config
    assert plan.config.paths.output == f"/finetune/volume/tune-{UID[:8]}"


LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
JOB_NAMES = st.from_regex(r"\A[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z").filter(lambda n: ".." not in n)


@given(JOB_NAMES)
def test_names_are_labels_of_63_whatever_the_job_is_called(name: str) -> None:
    made = [
        names.prepare_job(name),
        f"{names.train_job(name, 101)}-4095",
        names.config_map(name, "0123456789"),
        names.output_claim(name),
        names.output_directory(name, UID),
    ]
    for one in made:
        assert len(one) <= 63
        assert LABEL.match(one), one
    assert re.match(r"^[a-z]([-a-z0-9]*[a-z0-9])?$", names.service(name))
    assert len(names.service(name)) <= 63
    assert re.match(r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$", names.label_value(name))


@given(JOB_NAMES, JOB_NAMES)
def test_two_jobs_share_no_child(one: str, other: str) -> None:
    if one != other:
        assert names.train_job(one, 1) != names.train_job(other, 1)
        assert names.label_value(one) != names.label_value(other)


def test_a_child_leads_back_to_a_job_whose_name_no_label_holds() -> None:
    name = "a" * 200
    job = train(plan_of(job_body(name)))
    assert names.job_of(job) == ("team", name)
    template = job["spec"]["template"]
    assert names.job_of({"metadata": template["metadata"] | {"namespace": "team"}}) == ("team", name)


@pytest.mark.parametrize(
    ("text", "value"), [("2", 2), ("500m", 0.5), ("16Gi", 16 * 2**30), ("1.5G", 1.5e9), ("100k", 1e5)]
)
def test_quantities(text: str, value: float) -> None:
    assert float(quantity(text)) == value
