"""``finetune-train prepare|train --config FILE``: exit codes and the termination report are all that it tells."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from finetune_api.failures import ExitCode
from finetune_api.reports import DEFAULT_TERMINATION_PATH, TERMINATION_PATH_ENV, TerminationReport
from finetune_api.trainer_config import ATTEMPT_ENV, TrainerConfig
from pydantic import ValidationError

from finetune_trainer import log as logs
from finetune_trainer import surroundings, unsloth_start
from finetune_trainer.errors import TrainerError, volume_error
from finetune_trainer.interruption import Interruption
from finetune_trainer.launch import launch, needed
from finetune_trainer.log import log
from finetune_trainer.peers import is_worker, lost_peer
from finetune_trainer.supported import check_supported

STEPS = ("prepare", "train")


def main(arguments: list[str] | None = None) -> None:
    """Entry point; never returns."""
    parser = argparse.ArgumentParser(prog="finetune-train", description="Prepare and train one FineTuneJob.")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--config", type=Path, required=True, help="the trainer's configuration (JSON)")
    chosen = parser.parse_args(arguments)
    logs.set_up()
    interrupted = Interruption()
    interrupted.listen()
    report = run(chosen.step, chosen.config, interrupted)
    if report.message:
        log.error("%s", report.message)
        rank = 0 if report.rank is None else report.rank
        report = report.model_copy(update={"log_tail": report.log_tail or logs.tail(), "rank": rank})
    _write(report)
    sys.exit(report.exit_code)


def run(step: str, path: Path, interrupted: Interruption) -> TerminationReport:
    """Do ``step`` and say how it ended; raises nothing."""
    known: dict[str, object] = {}
    try:
        config = read_config(path)
        check_supported(config)
        surroundings.set_up(Path(config.paths.cache))
        if step == "prepare":
            return _prepare(config)
        if needed(config) and not is_worker():
            return launch(config, path, interrupted)
        return _train(config, interrupted, known)
    except TrainerError as error:
        return _failed(step, error.exit_code, str(error), known)
    except OSError as error:
        told = volume_error(error, error.filename or "a file", "output")
        if told is not None:
            return _failed(step, told.exit_code, str(told), known)
        return _crashed(step, error, known)
    except Exception as error:  # noqa: BLE001 - the last place that can say what happened
        return _crashed(step, error, known)


def read_config(path: Path) -> TrainerConfig:
    """The configuration in ``path``.

    Raises:
        TrainerError: CONFIG_INVALID.
    """
    try:
        return TrainerConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TrainerError(ExitCode.CONFIG_INVALID, f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise TrainerError(
            ExitCode.CONFIG_INVALID,
            f"{path}: {field}: {first['msg']}. Operator and trainer image do not match; use images of one release",
        ) from error


def _prepare(config: TrainerConfig) -> TerminationReport:
    # Late: the Hugging Face libraries read their environment when they are imported.
    from finetune_trainer.model import count_parameters  # noqa: PLC0415
    from finetune_trainer.prepare import prepare  # noqa: PLC0415
    from finetune_trainer.prepared import load_prepared  # noqa: PLC0415

    report = prepare(config)
    total, trained = count_parameters(config, load_prepared(config).model_directory)
    counts = {"parameters": total, "trainable_parameters": trained}
    model = report.model.model_copy(update=counts) if report.model else None
    return report.model_copy(update={"model": model})


def _train(config: TrainerConfig, interrupted: Interruption, known: dict[str, object]) -> TerminationReport:
    if config.distributed.gpus_per_node and not is_worker():  # one GPU, also on a machine that has more
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if config.distributed.gpus_per_node == 0:  # else DeepSpeed, which accelerate imports, complains of no GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if config.acceleration.unsloth:
        unsloth_start.start()  # before the imports below
    from finetune_trainer.train import train  # noqa: PLC0415

    attempt = os.environ.get(ATTEMPT_ENV, "1")
    return train(config, attempt=int(attempt) if attempt.isdigit() else 1, interrupted=interrupted, known=known)


def _failed(step: str, code: ExitCode, message: str, known: dict[str, object]) -> TerminationReport:
    return TerminationReport.model_validate({"step": step, "exit_code": int(code), "message": message, **known})


def _crashed(step: str, error: Exception, known: dict[str, object]) -> TerminationReport:
    message = f"{type(error).__name__}: {error}".strip()
    if is_worker() and lost_peer(error):
        told = f"another process of the training ended or fell silent; noticed here: {message[:300]}"
        return _failed(step, ExitCode.COLLECTIVE_TIMEOUT, told, known)
    log.error("%s", "".join(traceback.format_exception(error)).rstrip())
    return _failed(step, ExitCode.TRAINER_CRASH, message, known)


def _write(report: TerminationReport) -> None:
    path = Path(os.environ.get(TERMINATION_PATH_ENV) or DEFAULT_TERMINATION_PATH)
    try:
        path.write_bytes(report.encode())
    except OSError as error:  # outside a pod nobody may ask for it; the exit code stands
        log.warning("no termination report at %s: %s", path, error.strerror)


if __name__ == "__main__":
    main()
