"""What every model of the API shares: camelCase on the wire, nothing unknown accepted, nothing coerced.

The Kubernetes API server does not turn ``"8"`` into ``8``; neither may we, or a manifest that ``finetune run``
takes would be refused by the cluster. Hence ``strict`` here, and a test that sends the same cases to both. Of one thing
they judge differently: a whole number with a point, ``8.0``, is refused here, and there only where a rule reads it.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION: Final = "finetune.dev/v1alpha1"


class ApiModel(BaseModel):
    """Base of everything a user writes or reads. Frozen: a plan made from a spec stays true to it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_unset(cls, value: Any) -> Any:
        """As the API server prunes nulls before it fills in defaults."""
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a manifest: camelCase keys, unset optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
