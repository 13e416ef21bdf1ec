"""The half of a FineTuneJob's spec that says *what* to train: model, data, method and numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel
from finetune_api.chat_template import ChatTemplateSpec
from finetune_api.types import (
    DnsName,
    IntOrAuto,
    LongText,
    ModuleName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ShortText,
)
from finetune_api.uris import DATASET_SCHEMES, MODEL_SCHEMES, scheme_pattern

Stage = Literal["sft", "pt", "dpo", "kto", "orpo", "rm"]
DatasetFormat = Literal["alpaca", "sharegpt", "openai", "text", "preference", "kto"]
Precision = Literal["bf16", "fp16", "fp32", "fp8"]

ModelUri = Annotated[str, StringConstraints(max_length=1024, pattern=scheme_pattern(MODEL_SCHEMES))]
DatasetUri = Annotated[str, StringConstraints(max_length=1024, pattern=scheme_pattern(DATASET_SCHEMES))]


class SecretKeyRef(ApiModel):
    """A key of a Secret in the job's namespace. The operator never reads it: the pod gets it by reference."""

    name: DnsName
    """Name of the Secret."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "token"
    """Key in the Secret."""


class ModelSpec(ApiModel):
    """The base model."""

    source: ModelUri
    """Where the model is: `hf://organisation/name`, `pvc://claim/path`, `s3://…`, `oci://…`; `file:///path` for
    `finetune run` alone."""
    revision: ShortText = "main"
    """Branch, tag or commit on the hub. It is resolved to a commit once, in the prepare step, and recorded in
    `status.model.digest`."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository carries. Refused unless the profile allows it."""
    secret_ref: SecretKeyRef | None = None
    """Token for a gated or private model."""


class DatasetSource(ApiModel):
    """One data set, or one of several that are mixed."""

    uri: DatasetUri
    """Where the rows are: `hf://organisation/name/file`, `pvc://claim/path`, `configmap://name/key`, `s3://…`,
    `https://…`, `http://…`; `file:///path` for `finetune run` alone. docs/data.md says which kinds of files."""
    format: DatasetFormat = "alpaca"
    """Shape of a row. `alpaca`: instruction, input, output. `sharegpt`: conversations of from/value. `openai`:
    messages of role/content. `text`: text, for stage pt. `preference`: a prompt with a chosen and a rejected answer.
    `kto`: a conversation or a prompt with an answer, and whether that is desirable. docs/stages.md shows them."""
    columns: Annotated[dict[str, ShortText], Field(max_length=32)] = {}
    """Names of the set's own columns by the format's names, such as `{instruction: question}`."""
    split: ShortText = "train"
    """Split of a hub data set; ignored where the URI names a file."""
    weight: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    """Share of this source in the mix, relative to the others' weights. Unset everywhere: each row is used once. Else
    an epoch has as many samples as there are, and of each source its share of them: fewer of its samples, chosen by
    the seed, or some of them again. Where others have a weight, unset means 1."""
    max_samples: Annotated[int, Field(ge=1, le=2**40)] | None = None
    """Rows to take of this source, its first ones; unset takes all. What is streamed is read no further."""
    sha256: Annotated[str, StringConstraints(max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 that the source's one file must have, in hex."""
    secret_ref: SecretKeyRef | None = None
    """Token for a gated or private data set, on the hub or over https. Of `s3://` a Secret whose keys are
    `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` and, where wanted, `AWS_SESSION_TOKEN`, `AWS_REGION` and
    `AWS_ENDPOINT_URL`; `key` then means nothing."""


class ValidationSpec(ApiModel):
    """Rows held out of training, on which `evalLoss` is measured."""

    fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Share of the rows to hold out, chosen by the seed; 0 holds out none."""


class DatasetSpec(ApiModel):
    """What to train on."""

    sources: Annotated[list[DatasetSource], Field(min_length=1, max_length=64)]
    """One or several data sets."""
    max_length: Annotated[int, Field(ge=8, le=1048576)] = 2048
    """Longest sequence, in tokens. Longer samples lose whole turns from their end, never half a turn; longer texts
    (stage pt) are cut into pieces; longer answers of the preference stages lose their end."""
    packing: bool = False
    """Put several samples into one sequence. They neither see each other nor share positions."""
    validation: ValidationSpec = ValidationSpec()
    """Held-out rows."""
    streaming: bool = False
    """Read sources on the hub, over HTTP and in object stores as they come, row by row, instead of keeping a copy on
    the cache volume first: for sets that are larger than it. What is prepared of them, two to four bytes a token, must
    have room. Sources on claims are read where they are either way."""
    on_error: Literal["fail", "skip"] = "fail"
    """What a row that cannot be read does: `fail` the job, naming file, row and field, or `skip` it, counted by reason
    in `status.dataset.dropped`. What is wrong with a file as a whole fails the job either way."""


class MultimodalSpec(ApiModel):
    """Images, videos and sounds in the rows, and the parts of a model that take them in; of no account for text."""

    image_max_pixels: Annotated[int, Field(ge=1024, le=67108864)] = 589824
    """Width times height above which an image is scaled down, before the model's own processor scales it as it does
    when it serves. The default is that of 768 x 768."""
    video_fps: Annotated[float, Field(gt=0.0, le=120.0)] = 2.0
    """Frames a second that are taken of a video. Of one that is given as frames, how many a second these are."""
    video_max_frames: Annotated[int, Field(ge=2, le=4096)] = 128
    """Frames of a video at most; of more, as many are taken evenly."""
    video_max_pixels: Annotated[int, Field(ge=1024, le=67108864)] = 65536
    """As `imageMaxPixels`, of a video's frame. The default is that of 256 x 256."""
    freeze_vision_tower: bool = True
    """Leave the part that sees, or hears, as it is. False: it is trained by the job's method."""
    freeze_multi_modal_projector: bool = True
    """The same of what lies between that part and the language model."""


class FullMethod(ApiModel):
    """Train every weight."""

    master_weights: Literal["fp32", "none"] = "fp32"
    """`fp32`: weights, gradients and optimizer state in fp32, the arithmetic in `precision`, 16 bytes a parameter.
    `none`: all of them in `precision`, 8 bytes a parameter in bf16; updates smaller than its rounding are lost."""


class FreezeMethod(ApiModel):
    """Train some layers and freeze the rest."""

    trainable_layers: Annotated[int, Field(ge=-1024, le=1024)] = 2
    """n > 0: the last n layers; n < 0: the first n."""
    trainable_modules: Annotated[list[ModuleName], Field(max_length=64)] = []
    """Modules within those layers; empty means all of them."""
    extra_modules: Annotated[list[ModuleName], Field(max_length=64)] = []
    """Modules outside the layers, such as `lm_head`."""


class LoraMethod(ApiModel):
    """Low-rank adapters (Hu et al., 2021, arXiv 2106.09685) beside frozen weights."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank r of the adapters."""
    alpha: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Scaling: the adapter's output is multiplied by alpha / rank. Unset means twice the rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout before the adapter."""
    target_modules: Annotated[list[ModuleName], Field(max_length=64)] = []
    """Linear layers to adapt, by name's end, such as `q_proj`; empty means all but the output head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (arXiv 2312.03732)."""
    dora: bool = False
    """Decompose weights into magnitude and direction (arXiv 2402.09353)."""
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """How the adapters start: `default` (A random, B zero), `gaussian`, or from the weights themselves by `pissa`
    (arXiv 2404.02948) or `olora` (arXiv 2406.01775). The last two are delivered at twice the rank, for
    the base as it is."""
    lora_plus_ratio: Annotated[float, Field(ge=1.0, le=1024.0)] | None = None
    """LoRA+ (arXiv 2402.12354): learning rate of B over that of A."""
    modules_to_save: Annotated[list[ModuleName], Field(max_length=64)] = []
    """Modules trained in full and saved with the adapter, by whole names or their last parts: `norm` is the last norm,
    not a layer's `input_layernorm`. An embedding and a head that share their weight are trained together."""


class MethodSpec(ApiModel):
    """Which weights are trained: exactly one of the three."""

    full: FullMethod | None = None
    """Every weight."""
    freeze: FreezeMethod | None = None
    """Some layers."""
    lora: LoraMethod | None = None
    """Low-rank adapters; with `quantization.bits: 4` this is QLoRA."""


class QuantizationSpec(ApiModel):
    """Hold the frozen base weights in fewer bits. `bits: 4` alone implies nf4, double quantization and LoRA, that
    is QLoRA (arXiv 2305.14314)."""

    method: Literal["bitsandbytes", "hqq", "gptq", "awq", "fp8", "mxfp4"] = "bitsandbytes"
    """`bitsandbytes` and `hqq` quantize whole weights as they are loaded. `gptq`, `awq`, `fp8` and `mxfp4` say what the
    checkpoint is; its weights are dequantized once, in the prepare step, to what they stand for. That happens without
    `quantization` too."""
    bits: Literal[1, 2, 3, 4, 5, 6, 8] | None = None
    """Bits a weight."""
    type: Literal["nf4", "fp4"] = "nf4"
    """4-bit data type."""
    double_quantization: bool = True
    """Quantize the quantization constants too."""
    compute_dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Type that weights are dequantized to for the arithmetic; unset means `precision`."""


class TemplateSpec(ApiModel):
    """How a conversation becomes text, in training and in serving alike."""

    name: ShortText = "auto"
    """A built-in template, or `auto` for the tokenizer's own. `finetune templates` lists them."""
    ref: DnsName | None = None
    """A ChatTemplate of the job's namespace, instead of a built-in one."""
    inline: ChatTemplateSpec | None = None
    """A format of this job's own, by the slots of a ChatTemplate, instead of either."""
    system: LongText | None = None
    """System message for conversations that have none; unset means the template's default."""
    thinking: Literal["auto", "enabled", "disabled", "preserved"] = "auto"
    """What happens to chains of thought, in training and by default in serving. `auto`: as the format does where nobody
    says. `enabled`: they are trained, and an answer without one has an empty one; the format leaves those of earlier
    turns out. `preserved`: those stay. `disabled`: none is trained, and the prompt says that there is none."""
    train_on_prompt: bool = False
    """Train on the user's turns too."""
    mask_history: bool = False
    """Train on the last assistant turn alone, its calls of tools included."""
    date: Annotated[str, StringConstraints(max_length=10, pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")] | None = None
    """Day, as YYYY-MM-DD, that templates which write today's date (by `strftime_now`) write in training. Unset: the day
    of the job's creation, in UTC. In serving it is the day of serving."""


class PreferenceSpec(ApiModel):
    """Numbers of the preference stages dpo, kto and orpo."""

    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    """Stages dpo and kto: how strongly the model is held to where it started. Stage orpo: weight of the odds ratio
    beside the loss of the chosen answer (lambda of arXiv 2403.07691)."""
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """Loss of stage dpo: `sigmoid` (arXiv 2305.18290), `hinge` (SLiC, arXiv 2305.10425) or `ipo` (arXiv 2310.12036)."""
    sft_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Stage dpo: weight of the chosen answer's own loss, added to the preference's; 0 adds none."""
    desirable_weight: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    """Stage kto: weight of desirable answers; raise it where they are the fewer."""
    undesirable_weight: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    """Stage kto: weight of undesirable answers."""


class AccelerationSpec(ApiModel):
    """How it is made fast. `auto` takes the best there is and says in status which; an explicit wish that cannot
    be met is a refusal, never a silent fallback."""

    flash_attention: Literal["auto", "fa2", "fa3", "sdpa", "flex", "disabled"] = "auto"
    """Attention kernel; `disabled` is the plain one."""
    liger: bool | None = None
    """Liger's kernels for norms, rotary embeddings and gated units. Unset: on a GPU its fused loss alone, which never
    holds the logits; false: not that either. The fused loss is for stages sft and pt, and not for zero3 and fsdp2,
    which share out the head that it reads; `status.acceleration.kernels` has `fused-loss` where it runs."""
    unsloth: bool = False
    """Unsloth's kernels, for LoRA and QLoRA on one GPU; needs the trainer image that has them (docs/unsloth.md)."""
    compile: bool = False
    """torch.compile, layer by layer."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    keep_attention: bool = False
    """With `gradientCheckpointing`: keep the output of attention's kernel, which is not computed again then, for about
    as much memory as the layers' inputs take. The longer sequences are, the more time it saves."""
    activation_offload: bool = False
    """Hold activations in host memory."""
    fused_adapters: bool | None = None
    """Compute LoRA's adapters with the layers that they are on, and layers that read the same input as one. Unset:
    on a GPU wherever that gives the same."""


class HyperparametersSpec(ApiModel):
    """The numbers of the training itself."""

    epochs: Annotated[float, Field(gt=0.0, le=10000.0)] = 3.0
    """Passes over the data; `maxSteps` overrides it."""
    max_steps: PositiveInt | None = None
    """Optimizer steps after which training ends."""
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.0001
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate over the steps that follow the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    global_batch_size: Annotated[int, Field(ge=1, le=1048576)] = 8
    """Sequences per optimizer step, over all devices; gradient accumulation follows from it."""
    micro_batch_size: IntOrAuto = 1
    """Sequences per device and forward pass, or `auto`: the largest power of two that divides the device's share of
    `globalBatchSize` and is expected to fit its memory."""
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit", "adafactor"] = "adamw"
    """Optimizer."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are clipped to this norm; 0 clips none."""
    neftune_alpha: NonNegativeFloat = 0.0
    """NEFTune noise on the embeddings (arXiv 2310.05914); 0 adds none."""
    seed: NonNegativeInt = 42
    """Seeds weights, data order and dropout."""
