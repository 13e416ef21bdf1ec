"""A real API server takes every example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_cli.documents import Document, read_documents
from kubernetes import client

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [document for file in sorted((ROOT / "examples").iterdir()) for document in read_documents([str(file)])]
PATHS = {
    "FineTuneJob": "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs",
    "ChatTemplate": "/apis/finetune.dev/v1alpha1/namespaces/default/chattemplates",
    "TrainingProfile": "/apis/finetune.dev/v1alpha1/trainingprofiles",
    "ConfigMap": "/api/v1/namespaces/default/configmaps",
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: f"{Path(document.file).name}-{document.kind}")
def test_example_is_taken(api: client.ApiClient, document: Document) -> None:
    assert _create(api, PATHS[document.kind], document.body) == 201


def _create(api: client.ApiClient, path: str, body: dict[str, Any]) -> int:
    """Dry run, unknown fields being errors, as kubectl does; the HTTP status."""
    request = api.param_serialize(
        "POST",
        path,
        query_params=[("dryRun", "All"), ("fieldValidation", "Strict")],
        header_params={"Content-Type": "application/json", "Accept": "application/json"},
        body=body,
        auth_settings=["BearerToken"],
    )
    response = api.call_api(*request)
    assert response.status < 300, response.read()
    return int(response.status)
