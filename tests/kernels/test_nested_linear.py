"""Linears in two planes of 4 bits: their sum, and the rows that leave the low plane out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from d3cli.kernels.joint_linear import JointLinear, LinearPart
from d3cli.kernels.nested_linear import NestedLinear, nested_linears

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
SHAPES = [(64, 64), (128, 128), (80, 64), (112, 128), (16, 64), (576, 192)]
# Enough weights for the mean of their rounding errors.
ENOUGH = [(128, 128), (112, 128), (576, 192), (256, 512)]


def make(shape: tuple[int, int], dtype: torch.dtype, *, has_bias: bool = False) -> NestedLinear:
    torch.manual_seed(0)
    weight = torch.randn(shape) * 0.02
    bias = (
        nn.Parameter(torch.randn(shape[0]).to(dtype) * 0.01, requires_grad=False)
        if has_bias
        else None
    )
    return NestedLinear.rounded(weight, bias, dtype)


def slow(linear: NestedLinear, x: Tensor, low_rows: int) -> Tensor:
    """The product with the held weights in float64, position by position."""
    both, high = linear.dequantized().double(), linear.dequantized(low=False).double()
    rows = [
        x[..., at, :].double() @ (both if at < low_rows else high).T for at in range(x.shape[-2])
    ]
    product = torch.stack(rows, dim=-2)
    return product if linear.bias is None else product + linear.bias.detach().double()


@DTYPES
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leading_positions_get_both_planes_and_others_the_high_one(
    shape: tuple[int, int], has_bias: bool, dtype: torch.dtype
) -> None:
    linear = make(shape, dtype, has_bias=has_bias)
    for positions in (1, 4, 17, 100):
        x = torch.randn(2, positions, shape[1]).to(dtype)
        for low_rows in (None, 0, positions // 2, positions, positions + 5):
            linear.low_rows = low_rows
            exact = slow(linear, x, positions if low_rows is None else low_rows)
            with torch.inference_mode():
                found = linear(x)
            assert found.dtype == dtype
            # bfloat16 is rounded to at most twice; float32 is summed in another order.
            bound = (2 if dtype == BF16 else 64) * torch.finfo(dtype).eps
            scale = float(exact.std())
            torch.testing.assert_close(found.double(), exact, rtol=bound, atol=bound * scale)


@DTYPES
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("low_rows", [None, 0])
@pytest.mark.parametrize("shape", ENOUGH, ids=str)
def test_one_token_and_many_are_as_exact_as_a_plain_product(
    shape: tuple[int, int], low_rows: int | None, has_bias: bool, dtype: torch.dtype
) -> None:
    linear = make(shape, dtype, has_bias=has_bias)
    linear.low_rows = low_rows
    held = linear.dequantized(low_rows is None)
    # In float32 weights are unpacked for each row, and the bound is loose.
    x = torch.randn(1000 if dtype == BF16 else 100, shape[1]).to(dtype)
    exact = x.double() @ held.double().T
    exact += 0 if linear.bias is None else linear.bias.double()

    def error(found: Tensor) -> float:
        assert found.dtype == dtype
        return float((found.double() - exact).square().mean().sqrt())

    with torch.inference_mode():
        plain = error(functional.linear(x, held.to(dtype), linear.bias))
        for found in (torch.cat([linear(row) for row in x.split(1)]), linear(x)):
            # One by one, the planes' products are rounded, but no weight is. For many rows weights
            # are rounded to the dtype, as here, and parts of them before. Sums differ in order.
            assert error(found) <= (1.1 if dtype == BF16 else 2.0) * plain + 1e-8


def test_the_low_plane_holds_what_the_high_one_leaves() -> None:
    torch.manual_seed(1)
    weight = torch.randn(192, 256)
    linear = NestedLinear.rounded(weight, None, BF16)
    high, both = (
        float((linear.dequantized(low) - weight).square().mean()) for low in (False, True)
    )
    assert 0.002 < high < 0.01
    assert both < high / 100


def test_bytes_are_those_of_the_parameters() -> None:
    linear = make((128, 128), BF16, has_bias=True)
    held = sum(parameter.nbytes for parameter in linear.parameters())
    assert linear.high_bytes + linear.low_bytes == held
    assert 0.4 < linear.low_bytes / held < 0.5


def test_a_joint_product_is_found_once() -> None:
    product = make((128, 64), BF16)
    joint = JointLinear(product, [64, 64])
    module = nn.ModuleDict(
        {
            "first": LinearPart(joint, 0, 64),
            "second": LinearPart(joint, 1, 64),
            "other": make((64, 128), BF16),
            "plain": nn.Linear(64, 64),
        }
    )
    assert nested_linears(module) == [product, module["other"]]
