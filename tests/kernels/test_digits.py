"""Products with int8 weights by digits: as exact as in bfloat16, whatever the activations are."""

import math

import pytest
import torch
from torch import Tensor

from d3cli.kernels import digits
from d3cli.kernels.digits import SEVERAL, PackedCodes
from d3cli.kernels.int8_linear import EightBitLinear
from tests.kernels.conftest import needs_digits

pytestmark = needs_digits

OUTPUTS, INPUTS = 64, 2048


def linear(bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> EightBitLinear:
    torch.manual_seed(0)
    plain = torch.nn.Linear(INPUTS, OUTPUTS, bias=bias, dtype=dtype)
    return EightBitLinear(plain.weight.detach(), plain.bias)


def exact(small: EightBitLinear, rows: Tensor) -> Tensor:
    """The product in float64."""
    product = rows.double() @ small.dequantized().double().T
    return product if small.bias is None else product + small.bias.detach().double()


def rows(count: int, *, outlier: float = 1) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    found = torch.randn(count, INPUTS, generator=generator)
    found[:, 5] *= outlier
    return found.bfloat16()


def error(found: Tensor, expected: Tensor) -> float:
    """The root mean square error of each row, as a share of its size: the worst."""
    off = (found.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(off.max())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 3, SEVERAL, 70])
@pytest.mark.parametrize("outlier", [1, 30, 1e5])
def test_it_is_as_exact_as_the_results_rounding(count: int, outlier: float, bias: bool) -> None:
    plain, packed = linear(bias), linear(bias)
    packed.pack()
    x = rows(count, outlier=outlier)
    expected = exact(plain, x).detach()
    rounding = error(expected.bfloat16(), expected)
    assert error(packed(x), expected) < 1.1 * rounding
    assert packed(x).dtype == torch.bfloat16


def test_few_large_values_keep_the_third_digit() -> None:
    """The second case above has two digits, the third needs three: both ways are taken."""
    assert len(digits._split(rows(SEVERAL))[0]) == 2
    assert len(digits._split(rows(SEVERAL, outlier=1e5))[0]) == 3
    assert len(digits._split(rows(SEVERAL - 1))[0]) == 3


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = linear(bias=True)
    packed.pack()
    x = rows(5 * SEVERAL)
    whole = packed(x)
    monkeypatch.setattr(digits, "NUMBERS", 0)
    assert torch.equal(packed(x), whole)


def test_float32_rows_keep_their_24_bits() -> None:
    plain, packed = linear(dtype=torch.float32), linear(dtype=torch.float32)
    packed.pack()
    x = torch.randn(3, INPUTS)
    assert error(packed(x), exact(plain, x)) < 1e-6


@pytest.mark.parametrize("count", [2, SEVERAL + 1])
def test_rows_that_are_zero_tiny_or_not_finite(count: int) -> None:
    packed = linear()
    packed.pack()
    for special, finite in ((0.0, True), (1e-38, True), (math.inf, False), (math.nan, False)):
        x = rows(count)
        x[0] = 0
        x[0, 3] = special
        found = packed(x)
        assert bool(found[0].isfinite().all()) == finite
        assert found[1:].isfinite().all()
        if special == 0:
            assert not found[0].any()
    assert packed(rows(0)).shape == (0, OUTPUTS)


def test_packing_is_for_good_and_can_be_read_back() -> None:
    small = linear()
    held, size = small.dequantized(), small.weight.nbytes
    assert not small.is_packed
    small.pack()
    small.pack()
    assert small.is_packed
    assert small.weight.nbytes == size
    assert torch.equal(small.dequantized(), held)
    codes = torch.randint(-127, 128, (3, 64), dtype=torch.int8)
    assert torch.equal(PackedCodes.of(codes, torch.ones(3)).unpacked(), codes)
