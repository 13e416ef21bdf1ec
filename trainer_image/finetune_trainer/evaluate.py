"""What is measured beside the training loss: held-out loss, answers to prompts, and that packed samples keep apart."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from finetune_trainer.batches import Collator
from finetune_trainer.dtypes import DTYPES
from finetune_trainer.errors import TrainerError
from finetune_trainer.interruption import Interruption
from finetune_trainer.media_models import forget_positions
from finetune_trainer.prepared import IGNORED, Sequence, SequenceSet
from finetune_trainer.world import ALONE, World

_PACKING_TOLERANCE = 0.05
"""Nats a token by which a sample's loss may differ packed and alone: rounding stays below, attention to a neighbour
does not."""
_PROBE = 512
"""Tokens on which losses are compared."""
_FUSED_TOLERANCE = 0.01
"""Relative difference of the fused loss that rounding explains."""


@contextlib.contextmanager
def evaluating(model: Any, precision: str) -> Iterator[None]:
    """No gradients, no dropout, the arithmetic of training; uncompiled, since every shape would be compiled anew."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device.type
    compiling = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext()
    try:
        dtype = None if precision == "fp32" else DTYPES[precision]
        with eager, torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        model.train(was_training)


def held_out_loss(
    model: Any,
    sequences: SequenceSet,
    collator: Collator,
    config: TrainerConfig,
    interruption: Interruption,
    *,
    world: World = ALONE,
) -> float:
    """Mean loss of ``sequences`` in nats a supervised token: each token counts the same, whatever its batch.

    The processes of ``world`` share the batches out. All run as many forward passes, since weights that are sharded
    need every process in each: one that has no batch left repeats another's and does not count it.

    Raises:
        TrainerError: INTERRUPTED.
    """
    total, count = 0.0, 0.0
    size = int(config.hyperparameters.micro_batch_size)
    with evaluating(model, config.precision):
        for first in range(0, len(sequences), size * world.size):
            interruption.check()
            own = first + world.rank * size
            start = own if own < len(sequences) else first
            batch = collator([sequences[i] for i in range(start, min(start + size, len(sequences)))])
            summed, tokens = _summed_loss(model, batch)
            if own < len(sequences):
                total, count = total + summed, count + tokens
    total, count = world.total(total, count)
    return total / max(count, 1)


def _summed_loss(model: Any, batch: dict[str, Any]) -> tuple[float, int]:
    """Loss of all supervised tokens (nats), and how many there are; without logits where the loss is fused."""
    if "targets" in batch:
        tokens = batch["targets"].numel()
        inputs = _inputs(batch, next(model.parameters()).device, without=("tokens",))
        return (float(model(**inputs).loss) * tokens if tokens else 0.0), tokens
    losses = token_losses(model, batch)
    return float(losses.double().sum()), losses.numel()


def token_losses(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Loss of each supervised token (nats, fp32), in the batch's order, by the model's own logits."""
    device = next(model.parameters()).device
    inputs = _inputs(batch, device, without=("tokens", "labels", "loss_positions", "targets"))
    targets = batch["labels"][:, 1:].to(device)
    logits = model(**inputs).logits[:, :-1]
    wanted = targets != IGNORED
    return functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")


def _inputs(batch: dict[str, Any], device: torch.device, without: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name not in without
    }


def fused_loss_agrees(model: Any, sequence: Sequence, collator: Collator, config: TrainerConfig) -> bool:
    """Hold the fused loss of the start of one sequence against the loss by the model's own logits.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE where they differ and Liger was asked for.
    """
    batch = collator.unpadded()([_part(sequence, 0, min(_PROBE, len(sequence.input_ids)))])
    if batch["targets"].numel() == 0:
        return True
    with evaluating(model, config.precision):
        own = float(token_losses(model, batch).double().mean())
        summed, tokens = _summed_loss(model, batch)
    if abs(summed / tokens - own) <= _FUSED_TOLERANCE * max(own, 1.0):
        return True
    if config.acceleration.liger:
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            f"acceleration.liger: the fused loss of {type(model).__name__} is {summed / tokens:.4f} where its own is "
            f"{own:.4f} (the model scales or caps its logits); leave acceleration.liger unset",
        )
    return False


def check_packing(model: Any, sequences: SequenceSet, collator: Collator, config: TrainerConfig) -> None:
    """Hold the loss of a packed sample against its loss alone, on one sequence.

    Whether samples see each other depends on the model's own code: most families of transformers build their mask
    from position ids, but a repository's code may not, and nothing in the loss curve would show it.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE where they differ.
    """
    packed = next((s for s in (sequences[i] for i in range(len(sequences))) if len(s.lengths) > 1), None)
    if packed is None:
        return
    # The end of one sample and the start of the next: their logits are small beside those of a whole row.
    border, end = int(packed.lengths[0]), int(packed.lengths[0]) + min(_PROBE, int(packed.lengths[1]))
    both, alone = _part(packed, max(0, border - _PROBE), end), _part(packed, border, end)
    short = collator.unpadded()
    with evaluating(model, config.precision):
        together = token_losses(model, short([both]))[-int((alone.labels != IGNORED).sum()) :]
        separate = token_losses(model, short([alone]))
    difference = float((together - separate).abs().mean())
    if not difference <= _PACKING_TOLERANCE:
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            f"dataset.packing: {type(model).__name__} lets packed samples see each other (the loss of one differs by "
            f"{difference:.3f} nats a token from its loss alone); set packing to false for this model",
        )


def _part(sequence: Sequence, start: int, end: int) -> Sequence:
    """Tokens ``start`` to ``end``, with the samples that they belong to; all of it where it has media, whose tokens
    must not be cut apart."""
    if sequence.media:
        return sequence
    borders = np.clip(np.cumsum([0, *sequence.lengths.tolist()]), start, end)
    lengths = np.diff(borders)
    labels = sequence.labels[start:end].copy()
    labels[0] = IGNORED  # nothing is left that would predict it
    return Sequence(sequence.input_ids[start:end], labels, lengths[lengths > 0])


def answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: tuple[int, ...],
    config: TrainerConfig,
    interruption: Interruption,
) -> list[str]:
    """The model's greedy answers to ``evaluation.prompts``; in stage pt, how it goes on from them.

    Args:
        model: the model.
        tokenizer: with the chat template that is trained.
        stop_token_ids: end an answer.
        config: the job's.
        interruption: may end it between two prompts.

    Raises:
        TrainerError: INTERRUPTED.
    """
    device = next(model.parameters()).device
    found = []
    forget_positions(model)
    with evaluating(model, config.precision):
        for prompt in config.evaluation.prompts:
            interruption.check()
            inputs = _asked(prompt, tokenizer, config).to(device)
            output = model.generate(
                **inputs,
                max_new_tokens=config.evaluation.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                use_cache=True,
                eos_token_id=list(stop_token_ids) or None,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = output[0, inputs["input_ids"].shape[1] :]
            found.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return found


def _asked(prompt: str, tokenizer: Any, config: TrainerConfig) -> Any:
    """``prompt`` as the user's turn; in stage pt, which knows no turns, as text to go on from."""
    if config.stage == "pt":
        return tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    messages = [{"role": "user", "content": prompt}]
    if config.template.system is not None:
        messages.insert(0, {"role": "system", "content": config.template.system})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
