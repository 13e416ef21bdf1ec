"""Log lines for people: to stdout, and the last of them kept for the termination report."""

from __future__ import annotations

import collections
import logging
import sys
import warnings

KEPT_LINES = 40
_tail: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)

log = logging.getLogger("finetune")


class _Keep(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _tail.append(self.format(record))


def set_up(rank: int = 0) -> None:
    """Send our lines, and warnings of the libraries, to stdout; keep the last.

    Args:
        rank: of several processes, which share one stdout. Others than 0 say there only what goes wrong.
    """
    whose = "" if rank == 0 else f"rank {rank}: "
    form = logging.Formatter(f"%(asctime)s %(levelname).1s {whose}%(message)s", datefmt="%H:%M:%S")
    root = logging.getLogger()
    for handler in (logging.StreamHandler(sys.stdout), _Keep()):
        handler.setFormatter(form)
        root.addHandler(handler)
        if rank and not isinstance(handler, _Keep):
            handler.setLevel(logging.WARNING)
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    # What libraries will rename is for those who write against them, not for the reader of a job's log.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    # Hugging Face's loggers have handlers of their own on stderr; ours on the root would be a second.
    for name in ("transformers", "peft", "accelerate", "huggingface_hub"):
        logging.getLogger(name).propagate = True
    # torchao registers types in a way that torch will retire.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    # Retries of requests: hub.py says in one line what came of them.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def tail() -> str:
    """The last lines that were logged."""
    return "\n".join(_tail)
