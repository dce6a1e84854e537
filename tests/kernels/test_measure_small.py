"""For how many rows torch's kernels for fewer bits are used. No test measures time."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from d3cli.kernels import contest
from d3cli.kernels import measure_small as module
from d3cli.kernels.contest import Outcome
from d3cli.kernels.measure_small import (
    HALF,
    KERNEL,
    LIMITS,
    ROUND,
    UNLIMITED,
    UNPACKED,
    Kind,
    measure_head,
    measure_rows,
)
from d3cli.kernels.products import Product
from tests.kernels.conftest import needs_digits, needs_packing

KINDS = pytest.mark.parametrize("kind", ["int8", "int4", "nested"])
SHAPE = (128, 64)


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the real linears, a few times, on a machine that counts as quiet."""
    monkeypatch.setattr(module, "POOL_BYTES", 0)
    monkeypatch.setattr("d3cli.kernels.measure.POOL_BYTES", 1 << 16)
    monkeypatch.setattr(contest, "VISIT_S", 0.0)
    monkeypatch.setattr(contest, "AWAKE", 0.0)
    monkeypatch.setattr(contest, "UNSTEADY", float("inf"))


class Contest:
    """Compares by set times: one of the kernel for each contest; unpacking takes one second."""

    def __init__(self, *kernel: float) -> None:
        self._kernel = list(kernel)
        self.rows: list[int] = []

    def __call__(self, calls: Mapping[str, Any], default: str, **_: int) -> Outcome[str]:
        found = [call() for call in calls.values()]
        torch.testing.assert_close(found[0], found[1], rtol=2**-6, atol=2**-3)
        self.rows.append(len(found[0]))
        kernel = self._kernel[len(self.rows) - 1]
        return Outcome(default, {KERNEL: [kernel] * 3, UNPACKED: [1.0] * 3})


@KINDS
@pytest.mark.parametrize(
    ("kernel", "limit"),
    [
        ([9.0], 1),
        ([0.5, 1.2], 4),
        ([0.2, 0.6, 1.9], 16),
        ([0.2, 0.6, 1.0, 4.0], 64),
        ([0.2, 0.6, 0.9, 1.0, 1.2], 256),
        ([0.2, 0.6, 0.9, 1.0, 1.04], UNLIMITED),  # faster, but not by the margin
    ],
    ids=str,
)
def test_unpacking_begins_where_it_wins(
    kind: Kind, kernel: list[float], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_set_times = Contest(*kernel)
    monkeypatch.setattr(module, "compare", by_set_times)
    found = measure_rows(kind, *SHAPE)
    assert (found.kernel_rows, found.failed, found.steady) == (limit, "", True)
    assert by_set_times.rows == list(LIMITS.values())[: len(kernel)]


def test_each_contest_stands_for_the_numbers_after_its_limit() -> None:
    following = [*LIMITS, UNLIMITED][1:]
    for (limit, rows), most in zip(LIMITS.items(), following, strict=True):
        assert limit < rows <= most


@KINDS
@pytest.mark.parametrize("shape", [(512, 2048), (1536, 576), (128, 8192)], ids=str)
def test_unpacking_is_exact_enough(kind: Kind, shape: tuple[int, int]) -> None:
    assert module.why_not_exact(module.with_kernel(module._copies(kind, *shape)[0], 0)) == ""


@KINDS
def test_with_the_real_clock_some_limit_is_found(kind: Kind) -> None:
    assert measure_rows(kind, *SHAPE).kernel_rows in (*LIMITS, UNLIMITED)


@KINDS
def test_where_unpacking_raises_the_kernel_takes_all_rows(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("d3cli.kernels.int8_linear.scratch", broken)
    monkeypatch.setattr("d3cli.kernels.nested_linear.multiply_unpacked", broken)
    monkeypatch.setattr("d3cli.kernels.int4_linear.multiply_unpacked", broken)
    found = measure_rows(kind, *SHAPE)
    assert (found.kernel_rows, found.failed) == (UNLIMITED, "no such instruction")


def test_where_unpacking_is_less_exact_it_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = module.EightBitLinear._multiply_unpacked
    monkeypatch.setattr(
        module.EightBitLinear, "_multiply_unpacked", lambda self, rows: exact(self, rows) * 1.02
    )
    found = measure_rows("int8", *SHAPE)
    assert found.kernel_rows == UNLIMITED
    assert "times torch's" in found.failed


def test_a_large_weight_is_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WEIGHTS", 1 << 13)
    (small,) = module._copies("int4", 1 << 30, 64)
    assert (small.out_features, small.in_features) == (128, 64)


@pytest.mark.parametrize(
    "product", [Product.LINEAR, pytest.param(Product.PACKED_FOUR, marks=needs_packing)], ids=str
)
@pytest.mark.parametrize(("small", "faster"), [(0.6, True), (0.97, False), (1.4, False)])
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=needs_digits)])
def test_a_head_has_8_bits_if_it_is_faster_by_the_margin(
    packed: bool,
    small: float,
    faster: bool,
    product: Product,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_set_times(calls: Mapping[str, Any], default: str, **_: int) -> Outcome[str]:
        torch.testing.assert_close(calls[HALF](), calls[KERNEL](), rtol=0.05, atol=0.5)
        return Outcome(default, {HALF: [1.0] * 3, KERNEL: [small] * 3})

    monkeypatch.setattr(module, "compare", by_set_times)
    found = measure_head(*SHAPE, product, packed)
    assert (found.in_8_bits, found.share, found.steady) == (faster, small, True)


def test_a_head_whose_kernel_raises_stays_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(torch, "_weight_int8pack_mm", broken)
    assert not measure_head(*SHAPE, Product.LINEAR, False).in_8_bits


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_in_float32_weights_are_always_unpacked(kind: Kind, dtype: torch.dtype) -> None:
    linear = ROUND[kind](torch.ones(64, 64), None, dtype=dtype)
    assert (linear.kernel_rows == 0) == (dtype == torch.float32)
