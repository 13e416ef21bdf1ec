"""What every object of Kubernetes has, as far as our models know it."""

from __future__ import annotations

from pydantic import ConfigDict

from finetune_api.base import ApiModel


class ObjectMeta(ApiModel):
    """The metadata that we read; the rest is the server's affair."""

    model_config = ConfigDict(extra="ignore")

    name: str
    """Name."""
    namespace: str | None = None
    """Namespace."""
    uid: str | None = None
    """Uid."""
    generation: int | None = None
    """Generation."""
    labels: dict[str, str] = {}
    """Labels."""
    annotations: dict[str, str] = {}
    """Annotations."""
    creation_timestamp: str | None = None
    """Creation."""
    deletion_timestamp: str | None = None
    """Deletion asked for."""
