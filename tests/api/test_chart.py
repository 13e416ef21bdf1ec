"""The chart: what it renders, what it refuses, and that a real API server takes all of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, ROOT, Body, HelmError, helm, of_kind, only, program, render
from finetune_operator.settings import read_settings

EVERYTHING: Body = {
    "profile": {"enabled": True, "spec": {"environment": {"HF_ENDPOINT": "https://hub.example"}}},
    "networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {}}]},
    "podDisruptionBudget": {"enabled": True},
    "image": {"pullSecrets": ["pull"]},
    "priorityClassName": "high",
    "nodeSelector": {"a": "b"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "commonLabels": {"e": "f"},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
    "serviceAccount": {"annotations": {"a": "b"}},
    "service": {"annotations": {"a": "b"}},
}


def kubectl(kubeconfig: Path, *arguments: str, bodies: list[Body] | None = None) -> str:
    text = yaml.safe_dump_all(bodies) if bodies is not None else None
    command = [program("kubectl"), "--kubeconfig", str(kubeconfig), *arguments]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def namespace(api: Any, kubeconfig: Path) -> str:
    """A namespace that takes pods of the restricted standard alone."""
    name = "chart-restricted"
    body = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    kubectl(kubeconfig, "apply", "--server-side", "-f", "-", bodies=[body])
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "tuner-finetune-operator"}}
    kubectl(kubeconfig, "apply", "--server-side", "-n", name, "-f", "-", bodies=[account])
    return name


def test_helm_lint_has_nothing_to_say() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), values=EVERYTHING)


@pytest.mark.parametrize(
    "values",
    [{}, EVERYTHING, {"watchNamespaces": ["default", "kube-public"]}],
    ids=["the defaults", "everything switched on", "some namespaces"],
)
def test_the_server_takes_every_object(kubeconfig: Path, namespace: str, values: Body) -> None:
    bodies = render(values, namespace=namespace)
    told = kubectl(
        kubeconfig, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-",
        bodies=bodies,
    )  # fmt: skip
    assert len(told.splitlines()) == len(bodies)


def test_the_pod_is_let_into_a_restricted_namespace(kubeconfig: Path, namespace: str) -> None:
    template = only(render(namespace=namespace), "Deployment")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] |= {"name": "operator", "namespace": namespace}
    assert "created" in kubectl(kubeconfig, "create", "--dry-run=server", "-f", "-", bodies=[pod])


class TestCrds:
    def test_are_those_of_the_api_and_are_kept(self) -> None:
        crds = {crd["metadata"]["name"]: crd for crd in of_kind(render(), "CustomResourceDefinition")}
        ours = [yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")]
        assert {name: crd["spec"] for name, crd in crds.items()} == {
            crd["metadata"]["name"]: crd["spec"] for crd in ours
        }
        for crd in crds.values():
            assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"

    def test_go_with_the_release_where_asked(self) -> None:
        crds = of_kind(render({"crds": {"keep": False}}), "CustomResourceDefinition")
        assert crds
        assert not any("annotations" in crd["metadata"] for crd in crds)

    def test_can_be_left_to_somebody_else(self) -> None:
        assert not of_kind(render({"crds": {"enabled": False}}), "CustomResourceDefinition")


class TestValues:
    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ({"replicas": "two"}, "replicas"),
            ({"replica": 2}, "replica"),
            ({"image": {"tga": "x"}}, "tga"),
            ({"image": {"digest": "sha256:beef"}}, "digest"),
            ({"trainer": {"image": {"repository": ""}}}, "repository"),
            ({"settings": {"logLevel": "LOUD"}}, "logLevel"),
            ({"settings": {"workers": 0}}, "workers"),
            ({"settings": {"leaseSeconds": 2.5}}, "leaseSeconds"),
            ({"settings": {"progressUrl": "http://plain"}}, "progressUrl"),
            ({"watchNamespaces": ["Not_A_Name"]}, "watchNamespaces"),
            ({"watchNamespaces": "team"}, "watchNamespaces"),
            ({"service": {"progressPort": 0}}, "progressPort"),
            ({"crds": {"keep": "yes"}}, "keep"),
        ],
        ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
    )
    def test_wrong_ones_are_refused_by_name(self, values: Body, named: str) -> None:
        with pytest.raises(HelmError, match=named):
            render(values)

    def test_the_schema_knows_each_and_no_other(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())
        known = schema["properties"].pop("global")
        assert known["type"] == "object"
        _same_keys(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "")

    def test_an_old_cluster_is_refused(self) -> None:
        with pytest.raises(HelmError, match=r"1\.31"):
            render({}, "--kube-version", "1.30.4")


def _same_keys(schema: Body, values: Body, path: str) -> None:
    """Where the schema names properties, they are the keys of values.yaml, and no others are let in."""
    if "properties" not in schema:
        return
    assert schema["additionalProperties"] is False, path
    assert set(schema["properties"]) == set(values), path
    for name, part in schema["properties"].items():
        _same_keys(part, values[name], f"{path}.{name}")


POD = {"metadata.name": "tuner-finetune-operator-abc", "status.podIP": "10.0.0.7"}


def environment(values: Body) -> dict[str, str]:
    """The environment of the rendered operator's container, as the kubelet makes it for :data:`POD`."""
    (container,) = only(render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    return {
        variable["name"]: variable.get("value") or POD[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for variable in container["env"]
    }


class TestSettings:
    def test_defaults_are_the_operators_own(self) -> None:
        told = read_settings(environment({}))
        bare = read_settings(
            {
                "FINETUNE_TRAINER_IMAGE": "finetune-trainer:0.1.0",
                "FINETUNE_NAMESPACE": "finetune-system",
                "FINETUNE_SERVICE": "tuner-finetune-operator",
                "FINETUNE_TLS_SECRET": "tuner-finetune-operator-tls",
                "FINETUNE_LEASE": "tuner-finetune-operator",
                "FINETUNE_POD_NAME": POD["metadata.name"],
                "FINETUNE_POD_IP": POD["status.podIP"],
            }
        )
        assert told == bare
        assert told.address == "10.0.0.7:8443"

    def test_each_value_reaches_the_operator(self) -> None:
        told = read_settings(
            environment(
                {
                    "settings": {
                        "logFormat": "plain", "logLevel": "DEBUG", "workers": 3, "resyncSeconds": 4, "leaseSeconds": 30,
                        "progressUrl": "https://elsewhere:1", "progressIntervalSeconds": 0.5,
                        "backoffBaseSeconds": 5, "backoffCapSeconds": 6, "startGraceSeconds": 7,
                        "imagePullGraceSeconds": 8, "unschedulableTimeoutSeconds": 9,
                    },
                    "service": {"progressPort": 10, "metricsPort": 11},
                    "watchNamespaces": ["a", "b"],
                    "fullnameOverride": "short",
                }
            )
        )  # fmt: skip
        core = told.core
        assert (told.log_format, told.log_level, told.workers, told.resync_seconds) == ("plain", "DEBUG", 3, 4)
        assert (core.progress_url, core.progress_interval) == ("https://elsewhere:1", 0.5)
        assert (core.backoff_base, core.backoff_cap, core.start_grace) == (5, 6, 7)
        assert (core.image_pull_grace, core.unschedulable_timeout) == (8, 9)
        assert (told.progress_port, told.metrics_port, told.namespaces) == (10, 11, ("a", "b"))
        assert (told.tls_secret, told.lease, told.lease_seconds) == ("short-tls", "short", 30)
        assert (told.identity, told.address) == (POD["metadata.name"], "10.0.0.7:10")

    def test_the_progress_url_is_the_services(self) -> None:
        values = {"service": {"progressPort": 9443}}
        bodies = render(values)
        service = only(bodies, "Service")
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        assert read_settings(environment(values)).core.progress_url == f"https://{name}.{namespace}.svc:9443"
        assert 9443 in [port["port"] for port in service["spec"]["ports"]]

    @pytest.mark.parametrize(
        ("image", "reference"),
        [
            ({"repository": "r/t"}, "r/t:0.1.0"),
            ({"repository": "r/t", "tag": "2"}, "r/t:2"),
            ({"repository": "r/t", "tag": "2", "digest": f"sha256:{'a' * 64}"}, f"r/t@sha256:{'a' * 64}"),
        ],
    )
    def test_images_by_tag_or_digest(self, image: Body, reference: str) -> None:
        values = {"image": image, "trainer": {"image": image}}
        assert environment(values)["FINETUNE_TRAINER_IMAGE"] == reference
        (container,) = only(render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
        assert container["image"] == reference


class TestRights:
    @pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["a", "b"]}], ids=["cluster", "namespaces"])
    def test_hold_no_wildcard_and_do_not_reach_for_secrets(self, values: Body) -> None:
        rules = [rule for role in of_kind(render(values), "Role", "ClusterRole") for rule in role["rules"]]
        for rule in rules:
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
        on_secrets = [rule for rule in rules if "secrets" in rule["resources"]]
        for rule in on_secrets:
            assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["tuner-finetune-operator-tls"]
            assert set(rule["verbs"]) <= {"create", "get", "update"}
        assert on_secrets

    def test_secrets_are_the_release_namespaces_alone(self) -> None:
        roles = of_kind(render(), "Role", "ClusterRole")
        holding = [role for role in roles if any("secrets" in rule["resources"] for rule in role["rules"])]
        assert [(role["kind"], role["metadata"]["namespace"]) for role in holding] == [("Role", "finetune-system")]

    def test_are_for_one_lease_of_the_release_namespace(self) -> None:
        (role,) = (role for role in of_kind(render(), "Role", "ClusterRole") if "leases" in json.dumps(role["rules"]))
        assert (role["kind"], role["metadata"]["namespace"]) == ("Role", "finetune-system")
        named, making = role["rules"]
        assert (named["resourceNames"], named["verbs"]) == (["tuner-finetune-operator"], ["get", "update"])
        assert making["verbs"] == ["create"]
        assert environment({})["FINETUNE_LEASE"] == named["resourceNames"][0]

    def test_of_named_namespaces_are_bound_there_alone(self) -> None:
        bodies = render({"watchNamespaces": ["a", "b"], "rbac": {"aggregate": False}})
        (cluster_role,) = of_kind(bodies, "ClusterRole")
        assert {resource for rule in cluster_role["rules"] for resource in rule["resources"]} == {
            "tokenreviews",
            "trainingprofiles",
        }
        bindings = of_kind(bodies, "RoleBinding")
        jobs = [binding for binding in bindings if not binding["roleRef"]["name"].endswith(("-tls", "-lease"))]
        assert [binding["metadata"]["namespace"] for binding in jobs] == ["a", "b"]

    def test_can_be_left_to_somebody_else(self) -> None:
        bodies = render({"rbac": {"create": False, "aggregate": False}})
        assert not of_kind(bodies, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")

    def test_of_users_come_with_the_clusters_own_roles(self) -> None:
        bodies = render({"rbac": {"create": False}})
        to_view, to_edit = of_kind(bodies, "ClusterRole")
        assert to_view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
        assert {verb for rule in to_view["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
        assert "rbac.authorization.k8s.io/aggregate-to-view" not in to_edit["metadata"]["labels"]
        assert not any("trainingprofiles" in rule["resources"] for rule in to_edit["rules"])


class TestReplicas:
    @pytest.mark.parametrize("replicas", [1, 2, 3])
    def test_are_replaced_one_by_one_and_never_fewer(self, replicas: int) -> None:
        deployment = only(render({"replicas": replicas}), "Deployment")
        assert deployment["spec"]["replicas"] == replicas
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}

    def test_are_spread_over_nodes_where_there_are_enough(self) -> None:
        pod = only(render({"replicas": 2}), "Deployment")["spec"]["template"]
        (spread,) = pod["spec"]["topologySpreadConstraints"]
        assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
        assert spread["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert "topologySpreadConstraints" not in only(render(), "Deployment")["spec"]["template"]["spec"]

    def test_reach_each_other_through_the_network_policy(self) -> None:
        bodies = render({"networkPolicy": {"enabled": True}})
        progress, _ = only(bodies, "NetworkPolicy")["spec"]["ingress"]
        labels = only(bodies, "Deployment")["spec"]["template"]["metadata"]["labels"]
        within = [peer for peer in progress["from"] if "namespaceSelector" not in peer]
        assert [peer["podSelector"]["matchLabels"].items() <= labels.items() for peer in within] == [True]

    def test_are_drained_one_after_the_other(self) -> None:
        budget = only(render({"podDisruptionBudget": {"enabled": True}}), "PodDisruptionBudget")
        assert budget["spec"]["maxUnavailable"] == 1


def test_a_profile_comes_after_its_kind() -> None:
    values = {"profile": {"enabled": True, "name": "gpu", "spec": {"nodeSelector": {"gpu": "yes"}}}}
    profile = only(render(values), "TrainingProfile")
    assert profile["metadata"]["name"] == "gpu"
    assert profile["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"
    assert profile["spec"] == {"nodeSelector": {"gpu": "yes"}}


def test_a_service_monitor_finds_the_metrics_port() -> None:
    bodies = render({"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}})
    monitor = only(bodies, "ServiceMonitor")
    service = only(bodies, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_notes_name_the_deployment(kubeconfig: Path) -> None:
    command = ("install", "tuner", str(CHART), "--dry-run=client", "--namespace", "finetune-system")
    notes = helm(*command, values={"crds": {"enabled": False}}, kubeconfig=kubeconfig)
    assert "rollout status deployment/tuner-finetune-operator" in notes
