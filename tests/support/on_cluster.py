"""The embedded cluster with the chart installed from real images; a namespace for each module of tests.

Fixtures of the tiers e2e and faults, whose conftest.py imports all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chart import program
from finetune_cli.kubectl import Kubectl
from installed import OURS, Images, build_images, chart_values, cluster_up, installed_chart, operator_told, pull
from kubernetes import client, config
from team import RESTRICTED, Team
from tiny_jobs import ROWS
from tiny_model import make_tiny_model

PRIORITY = "finetune-urgent"


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """An administrator's kubeconfig, also in the environment for what is run as a program."""
    path = cluster_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(path))
        yield path


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> Iterator[client.ApiClient]:
    """A client of the API server."""
    with config.new_client_from_config(str(kubeconfig)) as api_client:
        yield api_client


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Kubectl:
    """kubectl, in no namespace."""
    return Kubectl(program("kubectl"))


@pytest.fixture(scope="session")
def images() -> Images:
    """The operator's and the trainer's image."""
    return build_images()


@pytest.fixture(scope="session")
def operator(kubectl: Kubectl, images: Images) -> Iterator[None]:
    """The operator, installed by its chart."""
    with installed_chart(kubectl, chart_values(images)):
        pull(kubectl, images.trainer)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny model."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def make_team(
    operator: None, api: client.ApiClient, kubectl: Kubectl, images: Images, model: Path
) -> Iterator[Callable[[str], Team]]:
    """Makes namespaces with the tiny model in a claim and rows in a ConfigMap; they go with the module."""
    core = client.CoreV1Api(api)
    made: list[str] = []

    def make(name: str) -> Team:
        core.create_namespace({"metadata": {"name": name, "labels": RESTRICTED | OURS}})
        made.append(name)
        team = Team(api, Kubectl(kubectl.program, namespace=name), images.operator)
        team.claim("model")
        team.send(model, "model", "tiny")
        team.config_map("rows", rows__jsonl=ROWS)
        return team

    yield make
    for name in made:
        kubectl.run("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="module")
def priority(api: client.ApiClient) -> Iterator[str]:
    """A PriorityClass above all jobs that name none: 1,000."""
    scheduling = client.SchedulingV1Api(api)
    scheduling.create_priority_class({"metadata": {"name": PRIORITY}, "value": 1000})
    yield PRIORITY
    scheduling.delete_priority_class(PRIORITY)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Put the operator's log under the report of a test that failed."""
    outcome = yield
    report = outcome.get_result()
    funcargs = getattr(item, "funcargs", {})
    if report.failed and "kubectl" in funcargs:
        report.sections.append(("the operator's log", operator_told(funcargs["kubectl"])))
