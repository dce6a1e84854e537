"""Rounding to 4 bits in groups: near the best values, and sound for the oddest weights."""

import pytest
import torch
from torch import Tensor

from d3cli.kernels.int4_rounding import Groups, round_to_groups

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)


def squared_error(weight: Tensor, groups: Groups) -> float:
    return float((groups.dequantized() - weight.float()).square().sum())


@DTYPES
@pytest.mark.parametrize("group", [32, 64, 128])
def test_least_squares_beat_values_that_span_the_range(dtype: torch.dtype, group: int) -> None:
    weight = torch.randn(48, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    fitted, spanning = (round_to_groups(weight, group, dtype, rounds) for rounds in (4, 0))
    assert squared_error(weight, fitted) < 0.9 * squared_error(weight, spanning)
    assert fitted.codes.dtype == torch.uint8
    assert int(fitted.codes.max()) <= 15
    assert fitted.scales.dtype == fitted.zeros.dtype == dtype
    assert fitted.scales.shape == fitted.zeros.shape == (48, 512 // group)


@DTYPES
def test_each_code_is_that_of_the_nearest_value(dtype: torch.dtype) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    found = round_to_groups(weight, 32, dtype)
    values = (torch.arange(16.0) - 8) * found.scales.float()[..., None]  # [out, groups, 16]
    values += found.zeros.float()[..., None]
    off = (weight.view(16, 2, 32, 1) - values[:, :, None]).abs()
    nearest = off.amin(-1).view(16, 64)
    assert torch.allclose((found.dequantized() - weight).abs(), nearest, atol=1e-5)


def test_weights_that_have_16_values_are_kept() -> None:
    """Those of a GGUF file in Q4_0 or Q4_1, for example."""
    codes = torch.randint(0, 16, (8, 4, 32), generator=torch.Generator().manual_seed(2))
    codes[..., 0], codes[..., 1] = 0, 15
    weight = (codes - 8).float() * torch.tensor([0.25, 0.5, 2.0, 3.0])[:, None] + 0.5
    found = round_to_groups(weight.view(8, 128), 32, BF16)
    assert torch.equal(found.dequantized(), weight.view(8, 128))


@DTYPES
def test_a_group_of_equal_weights_is_exact(dtype: torch.dtype) -> None:
    for value in (0.0, 0.5, -3.0):
        weight = torch.full((2, 64), value)
        assert torch.equal(round_to_groups(weight, 32, dtype).dequantized(), weight)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_shows_in_its_group_alone(bad: float) -> None:
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(3))
    clean = round_to_groups(weight, 32, BF16).dequantized()
    weight[1, 40] = bad
    found = round_to_groups(weight, 32, BF16).dequantized()
    assert found[1, 32:64].isnan().all()
    clean[1, 32:64] = found[1, 32:64]
    assert torch.equal(found.nan_to_num(), clean.nan_to_num())


@DTYPES
def test_huge_outliers_and_tiny_weights_stay_finite(dtype: torch.dtype) -> None:
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(4))
    weight[0, 3], weight[1, 3] = 1e30, -1e30
    weight[2] *= 1e-30
    weight[3] *= 1e-39  # its scales would be subnormal
    found = round_to_groups(weight, 32, dtype).dequantized()
    assert found.isfinite().all()
    largest = weight.view(4, 4, 32).abs().amax(-1, keepdim=True)
    off = (found - weight).view(4, 4, 32).abs()
    assert torch.all(off <= 0.08 * largest + torch.finfo(dtype).tiny)


def test_the_dtype_of_the_file_may_be_any_float() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(5)).half()
    for same in (weight.float(), weight.double()):
        found = round_to_groups(same, 32, BF16)
        assert torch.equal(found.codes, round_to_groups(weight, 32, BF16).codes)


@DTYPES
def test_important_inputs_have_smaller_errors(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(64, 128, generator=generator)
    importance = torch.rand(128, generator=generator).pow(8) + 1e-3
    fitted, even = (round_to_groups(weight, 64, dtype, importance=i) for i in (importance, None))

    def error(groups: Groups) -> float:
        return float(((groups.dequantized() - weight).square() * importance).sum())

    assert error(fitted) < 0.9 * error(even)
    assert squared_error(weight, fitted) > squared_error(weight, even)


def test_equal_importance_is_none() -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(8))
    for importance in (torch.full((128,), 3.0), torch.zeros(128), torch.full((128,), torch.nan)):
        found = round_to_groups(weight, 64, FP32, importance=importance)
        expected = round_to_groups(weight, 64, FP32)
        torch.testing.assert_close(found.dequantized(), expected.dequantized())


def test_one_input_that_matters_leaves_the_others_sound() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(9))
    importance = torch.full((64,), 1e-12)
    importance[5] = 1e6
    off = (round_to_groups(weight, 64, BF16, importance=importance).dequantized() - weight).abs()
    assert off[:, 5].max() < 0.02
    assert off.max() < 0.5
