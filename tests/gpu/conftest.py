"""What all tests on GPUs need."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process are on the first GPU, as `finetune-train` sees to it for one; transformers would spread
    them over every one that it finds. Launched processes see all."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
