"""torch's types by the API's names."""

from __future__ import annotations

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.bfloat16}
"""torch's type by the API's name; what is not multiplied in fp8 is in bf16."""
