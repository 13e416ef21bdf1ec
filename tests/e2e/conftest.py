"""The embedded cluster with the chart installed; a namespace for each module of tests."""

from cluster_fixtures import api, images, kubeconfig, kubectl, make_team, model, operator, pytest_runtest_makereport

__all__ = ["api", "images", "kubeconfig", "kubectl", "make_team", "model", "operator", "pytest_runtest_makereport"]
