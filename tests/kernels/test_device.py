"""The dtype that is chosen where none is asked for, by what the processor multiplies."""

from collections.abc import Iterator

import pytest
import torch

from d3cli.kernels import device
from d3cli.kernels.device import product_dtype
from d3cli.kernels.quantization import Quantization
from d3cli.model.load import load_model

BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16


@pytest.fixture(autouse=True)
def _without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor without instructions for bfloat16."""
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: False)
    product_dtype.cache_clear()
    yield
    product_dtype.cache_clear()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("quantization", [None, "int4", "int8"])
def test_auto_is_bfloat16_where_it_is_not_slower(
    fast: bool, quantization: Quantization | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's kernels for 8 and 4 bits are slow with float32 everywhere."""
    monkeypatch.setattr("d3cli.kernels.choices.KernelChoices.bfloat16_is_fast", lambda _: fast)
    model = load_model(quantization=quantization, device="cpu")
    assert model.causal_lm.dtype == (BF16 if fast or quantization else FP32)


def test_a_dtype_that_was_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("d3cli.kernels.choices.KernelChoices.bfloat16_is_fast")
    assert load_model(dtype="float32", device="cpu").causal_lm.dtype == FP32
    assert load_model(dtype="bfloat16", device="cpu").causal_lm.dtype == BF16


def test_matrices_in_bfloat16_are_multiplied_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [product_dtype(dtype) for dtype in (BF16, FP32, FP16)] == [FP32, FP32, FP16]
    product_dtype.cache_clear()
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: True)
    assert product_dtype(BF16) == BF16
