"""GGUF's 4-bit types as groups: the values that the package `gguf` unpacks."""

import gguf
import numpy as np
import pytest
import torch

from d3cli.kernels.ggml_groups import KINDS, groups_of


def random_rows(kind: str, rows: int = 6, inputs: int = 512) -> np.ndarray:
    """Rows of random codes and plausible scales, as a file holds them."""
    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (rows, inputs // size, nbytes), dtype=np.uint8)
    numbers = {"Q4_0": 1, "Q4_1": 2, "Q4_K": 2}[kind]
    scales = random.normal(0, 0.02, (rows, inputs // size, numbers)).astype(np.float16)
    blocks[..., : 2 * numbers] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def unpacked(packed: np.ndarray, kind: str) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_groups_have_the_values_of_the_file(kind: str) -> None:
    packed = random_rows(kind)
    exact = unpacked(packed, kind)
    found = groups_of(torch.from_numpy(packed), kind, torch.float32)
    assert found.codes.shape == exact.shape
    assert found.scales.shape == found.zeros.shape == (6, 512 // 32)
    torch.testing.assert_close(found.dequantized(), exact, rtol=0, atol=1e-6 * exact.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_they_are_near_the_unpacked_weights_in_bfloat16(kind: str) -> None:
    packed = random_rows(kind)
    exact = unpacked(packed, kind)
    found = groups_of(torch.from_numpy(packed), kind, torch.bfloat16)
    assert found.scales.dtype == found.zeros.dtype == torch.bfloat16
    off, plain = ((each - exact).square().sum() for each in (found.dequantized(), exact.bfloat16()))
    assert off < 1.5 * plain


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_scale_shows(kind: str) -> None:
    packed = random_rows(kind)
    packed[2, :2] = np.array([np.nan], np.float16).view(np.uint8)
    found = groups_of(torch.from_numpy(packed), kind, torch.bfloat16).dequantized()
    assert found[2, :32].isnan().all()
    assert found[:2].isfinite().all()
