"""Products with a thin one on top: what the plain sum says, on what a CPU can."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from finetune_trainer import added_products
from finetune_trainer.fp8 import GRADIENTS, VALUES, scale_of, scaled

TOKENS, IN, OUT, COLUMNS = 32, 64, 48, 16


@pytest.fixture(autouse=True)
def _chance() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_an_extended_product(dtype: torch.dtype) -> None:
    gradient, weight = torch.randn(TOKENS, OUT, dtype=dtype), torch.randn(OUT, IN + COLUMNS, dtype=dtype)
    down = torch.randn(COLUMNS, IN, dtype=dtype)
    found = added_products.extended(gradient, weight, down)
    inner = gradient.double() @ weight[:, IN:].double()
    expected = gradient.double() @ weight[:, :IN].double() + inner @ down.double()
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for one, other in ((found[:, :IN], expected), (found[:, IN:], inner)):
        assert float((one.double() - other).norm() / other.norm()) < tolerance


@pytest.mark.parametrize("kind", [VALUES, GRADIENTS])
def test_8_bit_floats(kind: torch.dtype) -> None:
    rows, weight = torch.randn(TOKENS, IN, dtype=torch.bfloat16), torch.randn(OUT, IN, dtype=torch.bfloat16)
    inner = torch.randn(TOKENS, COLUMNS, dtype=torch.bfloat16)
    outer = torch.randn(COLUMNS, OUT, dtype=torch.bfloat16)
    scale = scale_of(weight, VALUES)
    packed = (weight / scale).to(VALUES)
    found = added_products.fp8(*scaled(rows, kind), packed.t(), scale, inner, outer)
    units, own = scaled(rows, kind)
    expected = units.double() @ packed.double().t() * float(own) * float(scale) + inner.double() @ outer.double()
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).norm() / expected.norm()) < 1e-2


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("transposed", [False, True])
def test_4_bits(kind: str, transposed: bool) -> None:
    packed, state = quantize_4bit(torch.randn(OUT, IN), quant_type=kind, blocksize=64)
    weight = dequantize_4bit(packed, state).double()
    rows, outer = torch.randn(TOKENS, IN if transposed else OUT), torch.randn(COLUMNS, OUT if transposed else IN)
    inner = torch.randn(TOKENS, COLUMNS)
    found = added_products.four_bits(
        rows, packed, state.absmax, 64, kind, [OUT, IN], inner, outer, transposed=transposed
    )
    expected = rows.double() @ (weight.t() if transposed else weight) + inner.double() @ outer.double()
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-3)


def test_the_compiler_knows_their_shapes() -> None:
    made: dict[str, torch.Tensor] = {
        "gradient": torch.randn(TOKENS, OUT),
        "weight": torch.randn(OUT, IN + COLUMNS),
        "down": torch.randn(COLUMNS, IN),
    }
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(added_products.extended, tuple(made.values()), test_utils=checks)
    packed, state = quantize_4bit(torch.randn(OUT, IN), quant_type="nf4", blocksize=64)
    four = (torch.randn(TOKENS, IN), packed, state.absmax, 64, "nf4", [OUT, IN], torch.randn(TOKENS, COLUMNS))
    whole = (*four, torch.randn(COLUMNS, OUT))
    torch.library.opcheck(added_products.four_bits, whole, {"transposed": True}, test_utils=checks)
    eight, scale = torch.randn(OUT, IN).to(VALUES), torch.tensor(1.0)
    thin = (torch.randn(TOKENS, COLUMNS).bfloat16(), torch.randn(COLUMNS, OUT).bfloat16())
    whole = (*scaled(torch.randn(TOKENS, IN), VALUES), eight.t(), scale, *thin)
    torch.library.opcheck(added_products.fp8, whole, test_utils=checks[1])  # the other adds 8-bit floats up
