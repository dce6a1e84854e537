"""Linears in 4 and 8 bits: as exact as a plain product, in every order that the kernel uses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from d3cli.kernels import int4_linear
from d3cli.kernels.int4_linear import (
    FEW,
    FourBitLinear,
    block_size,
    fits_int4,
    int4_bytes,
    pack_codes,
)
from d3cli.kernels.int4_rounding import round_to_groups
from d3cli.kernels.int8_linear import EightBitLinear

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
# Whole blocks, a rest of each length, and less than a block.
SHAPES = [(64, 64), (128, 96), (80, 64), (96, 32), (112, 128), (16, 32), (576, 192)]
Small = FourBitLinear | EightBitLinear


def make(kind: str, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> Small:
    if kind == "int4":
        return FourBitLinear.rounded(weight, bias, dtype)
    return EightBitLinear(weight, bias, dtype=dtype)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_many_tokens_without_instructions_for_bfloat16(
    kind: str, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are multiplied in float32, and rounded once."""
    for name in ("int4_linear", "int8_linear"):
        monkeypatch.setattr(f"d3cli.kernels.{name}.product_dtype", lambda _: FP32)
    torch.manual_seed(0)
    weight = torch.randn(112, 128) * 0.02
    values = torch.randn(112).to(BF16) * 0.01
    bias = nn.Parameter(values, requires_grad=False) if has_bias else None
    small = make(kind, weight, bias, BF16)
    held, x = small.dequantized(), torch.randn(200, 128).to(BF16)
    exact = x.double() @ held.double().T + (0 if bias is None else bias.double())
    with torch.inference_mode():
        found = small(x)
        plain = error(linear(x, held.to(BF16), bias), exact)
    assert found.dtype == BF16
    assert error(found, exact) <= 1.1 * plain


@DTYPES
@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_token_and_many_are_as_exact_as_a_plain_product(
    kind: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape) * 0.02
    bias = nn.Parameter(torch.randn(shape[0]).to(dtype) * 0.01)
    small = make(kind, weight, bias, dtype)
    held = small.dequantized()
    x = torch.randn(1000, shape[1]).to(dtype)
    exact = x.double() @ held.double().T + bias.double()
    with torch.inference_mode():
        plain = error(linear(x, held.to(dtype), bias), exact)
        one_by_one = torch.cat([small(row) for row in x[:, None].split(1)])[:, 0]
        for found in (one_by_one, small(x), small(x[None])[0]):
            assert found.dtype == dtype
            # Both sum in float32, in different orders.
            assert error(found, exact) <= (1.1 if dtype == BF16 else 2.0) * plain + 1e-8


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_held_weights_are_those_that_were_rounded(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    small = FourBitLinear.rounded(weight, None, BF16)
    assert torch.equal(
        small.dequantized(), round_to_groups(weight, small.group, BF16).dequantized()
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_packed_as_torch_packs_them(shape: tuple[int, int]) -> None:
    codes = torch.randint(0, 16, shape, dtype=torch.uint8)
    expected = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    assert torch.equal(pack_codes(codes), expected)


def test_packing_in_parts_is_packing_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(240, 64, generator=torch.Generator().manual_seed(2))
    whole = FourBitLinear.rounded(weight, None, BF16)
    monkeypatch.setattr(int4_linear, "CHUNK", 64 * 64)
    monkeypatch.setattr(int4_linear, "WEIGHTS", 64 * 64)
    parts = FourBitLinear.rounded(weight, None, BF16)
    assert torch.equal(whole.weight, parts.weight)
    assert torch.equal(whole.weight, pack_codes(round_to_groups(weight, 32, BF16).codes))
    assert torch.equal(whole.scales_and_zeros, parts.scales_and_zeros)
    x = torch.randn(FEW + 1, 64).to(BF16)
    assert torch.equal(parts.dequantized(), whole.dequantized())
    expected = x.double() @ parts.dequantized().to(BF16).double().T
    torch.testing.assert_close(parts(x).double(), expected, rtol=2**-6, atol=2**-3)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_no_rows_at_all(kind: str) -> None:
    assert make(kind, torch.ones(16, 64), None, BF16)(torch.zeros(1, 0, 64, dtype=BF16)).shape == (
        1,
        0,
        16,
    )


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rows", [1, FEW + 1])
def test_a_damaged_weight_shows_in_the_result(kind: str, bad: float, rows: int) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(3))
    weight[5, 7] = bad
    found = make(kind, weight, None, BF16)(torch.ones(rows, 64, dtype=BF16))
    assert not found[:, 5].isfinite().any()
    assert found[:, :5].isfinite().all()
    assert found[:, 6:].isfinite().all()


def test_shapes_that_the_kernel_takes() -> None:
    assert [fits_int4(64, inputs) for inputs in (2048, 576, 96, 80)] == [True, True, True, False]
    assert not fits_int4(40, 64)
    with pytest.raises(ValueError, match="40"):
        FourBitLinear.rounded(torch.zeros(40, 64), None, BF16)


@DTYPES
def test_its_bytes_are_predicted(dtype: torch.dtype) -> None:
    for shape in ((64, 64), (48, 96)):
        small = FourBitLinear.rounded(torch.ones(shape), None, dtype)
        held = sum(parameter.nbytes for parameter in small.parameters())
        assert held == int4_bytes(*shape, dtype)


def test_its_state_can_be_saved_and_loaded_again() -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(4))
    first, second = (
        FourBitLinear.rounded(each, None, BF16) for each in (weight, torch.zeros(48, 64))
    )
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.dequantized(), second.dequantized())


@pytest.mark.slow
def test_other_processors_store_blocks_in_another_order() -> None:
    """The tests above, with the kernel of processors without AVX2. `make test-avx2` has theirs."""
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PYTHONPATH": str(Path.cwd()),
    }
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run(
        [*pytest_here, __file__], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout
    probe = f"from {block_size.__module__} import block_size; print(block_size())"
    done = subprocess.run(
        [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.strip() == "32"
