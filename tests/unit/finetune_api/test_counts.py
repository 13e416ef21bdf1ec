"""How many parameters are trained, in words: what the log, the command line and the model card say."""

from __future__ import annotations

import pytest
from finetune_api.status import ModelStatus


@pytest.mark.parametrize(
    ("trained", "total", "said"),
    [
        (43_646_976, 8_190_735_360, "43,646,976 of 8,190,735,360 parameters trained: 99.5 % fewer"),
        (250, 1000, "250 of 1,000 parameters trained: 75.0 % fewer"),
        (1000, 1000, "all 1,000 parameters trained"),
        # Never "100.0 % fewer" of something.
        (2, 10_000_000, "2 of 10,000,000 parameters trained: 99.99998 % fewer"),
        (0, 1000, "0 of 1,000 parameters trained: 100.0 % fewer"),
        (1200, 1000, "1,200 of 1,000 parameters trained"),
        (None, 1000, ""),
        (10, None, ""),
    ],
)
def test_the_reduction_is_said(trained: int | None, total: int | None, said: str) -> None:
    assert ModelStatus(parameters=total, trainable_parameters=trained).trained == said
