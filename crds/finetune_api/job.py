"""FineTuneJob: one fine-tuning run, declared."""

from __future__ import annotations

from typing import Any, Literal

from finetune_api.base import API_VERSION, ApiModel
from finetune_api.metadata import ObjectMeta
from finetune_api.running import (
    DistributedSpec,
    EvaluationSpec,
    OutputSpec,
    ResourcesSpec,
    RunPolicy,
    SchedulingSpec,
    TrackingSpec,
)
from finetune_api.stages import PREFERENCE_NUMBERS
from finetune_api.status import FineTuneJobStatus
from finetune_api.training import (
    AccelerationSpec,
    DatasetSpec,
    HyperparametersSpec,
    LoraMethod,
    MethodSpec,
    ModelSpec,
    MultimodalSpec,
    Precision,
    PreferenceSpec,
    QuantizationSpec,
    Stage,
    TemplateSpec,
)


class FineTuneJobSpec(ApiModel):
    """What the user declares. Immutable once accepted, but for `runPolicy` and `scheduling.queueName`."""

    stage: Stage = "sft"
    """Kind of training: `sft` supervised fine-tuning, `pt` pre-training on plain text; from preferences `dpo`, `kto`,
    `orpo`, and `rm`, which makes a reward model."""
    preference: PreferenceSpec | None = None
    """Numbers of the preference stages; unset means their defaults."""
    model: ModelSpec
    """Base model."""
    dataset: DatasetSpec
    """Data."""
    multimodal: MultimodalSpec = MultimodalSpec()
    """Images, videos and sounds in the data."""
    method: MethodSpec = MethodSpec()
    """Which weights are trained: exactly one of `full`, `freeze`, `lora`. May be left out where
    `quantization.bits` is set, which implies LoRA."""
    quantization: QuantizationSpec | None = None
    """Quantization of the frozen base."""
    precision: Precision = "bf16"
    """Type that the arithmetic runs in."""
    template: TemplateSpec = TemplateSpec()
    """Chat template."""
    acceleration: AccelerationSpec = AccelerationSpec()
    """Kernels and memory savers."""
    hyperparameters: HyperparametersSpec = HyperparametersSpec()
    """Numbers of the training."""
    distributed: DistributedSpec = DistributedSpec()
    """Devices."""
    resources: ResourcesSpec = ResourcesSpec()
    """Resources of each pod."""
    scheduling: SchedulingSpec = SchedulingSpec()
    """Scheduling."""
    output: OutputSpec = OutputSpec()
    """Result."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """Measurements beside the training loss."""
    tracking: TrackingSpec = TrackingSpec()
    """Experiment trackers."""
    run_policy: RunPolicy = RunPolicy()
    """Suspension, retries and ends."""

    @property
    def resolved_method(self) -> MethodSpec:
        """The method with the implication made plain: quantized and nothing said means LoRA."""
        said = self.method
        if said.full is None and said.freeze is None and said.lora is None:
            return MethodSpec(lora=LoraMethod())
        return said

    @property
    def resolved_preference(self) -> PreferenceSpec | None:
        """The preference stages' numbers with their defaults; None for other stages."""
        return (self.preference or PreferenceSpec()) if self.stage in PREFERENCE_NUMBERS else None

    @property
    def method_name(self) -> str:
        """``full``, ``freeze``, ``lora`` or ``qlora``: what the Method column shows."""
        method = self.resolved_method
        if method.full is not None:
            return "full"
        if method.freeze is not None:
            return "freeze"
        bits = self.quantization.bits if self.quantization else None
        return "qlora" if bits == 4 else "lora"


class FineTuneJob(ApiModel):
    """Fine-tune one language model."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    metadata: ObjectMeta
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> FineTuneJob:
        """Parse a manifest or what the API server sent.

        Raises:
            pydantic.ValidationError: a field is unknown, of the wrong type or out of its bounds. Rules between
                fields are not tried here: see :func:`finetune_api.validation.validate_manifest`.
        """
        return cls.model_validate(body)
