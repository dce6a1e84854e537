"""Whether int8 weights are packed for oneDNN. No test measures time."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from d3cli.kernels import contest
from d3cli.kernels import measure_packing as module
from d3cli.kernels.contest import HOPELESS, Outcome
from d3cli.kernels.digits import PackedCodes
from d3cli.kernels.measure_packing import PACKED, WORST, measure_packing
from d3cli.kernels.measure_small import KERNEL
from tests.kernels.conftest import needs_digits

SHAPE = (128, 64)


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the real linears, a few times, on a machine that counts as quiet."""
    monkeypatch.setattr(module, "POOL_BYTES", 1 << 14)
    monkeypatch.setattr(contest, "VISIT_S", 0.0)
    monkeypatch.setattr(contest, "AWAKE", 0.0)
    monkeypatch.setattr(contest, "UNSTEADY", float("inf"))


class Contest:
    """Contests whose times are set: each of the packed weights, as a share of the plain ones'."""

    def __init__(self, *shares: float) -> None:
        self.rows: list[int] = []
        self._shares = list(shares)

    def __call__(self, calls: Mapping[str, Any], default: str, **_: int) -> Outcome[str]:
        plain, packed = calls[KERNEL](), calls[PACKED]()
        torch.testing.assert_close(plain, packed, rtol=0.02, atol=0.5)
        self.rows.append(len(plain))
        return Outcome(default, {KERNEL: [1.0] * 3, PACKED: [self._shares.pop(0)] * 3})


FEW, MANY = WORST


@needs_digits
@pytest.mark.parametrize(
    ("shares", "packed"),
    [
        ([0.7, 1.0, 1.0], True),
        ([0.97], False),  # faster, but not by the margin
        ([0.7, WORST[FEW] + 0.01], False),
        ([0.7, WORST[FEW], WORST[MANY] + 0.01], False),
        ([0.7, WORST[FEW], WORST[MANY]], True),
    ],
    ids=str,
)
def test_it_must_win_for_one_row_and_be_good_enough_for_more(
    shares: list[float], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_set_times = Contest(*shares)
    monkeypatch.setattr(module, "compare", by_set_times)
    found = measure_packing(*SHAPE)
    assert (found.is_faster, found.share, found.steady) == (packed, shares[0], True)
    assert by_set_times.rows == [1, FEW, MANY][: len(shares)]


@needs_digits
def test_with_the_real_clock_it_finds_a_share() -> None:
    found = measure_packing(*SHAPE)
    assert (found.failed, found.steady) == ("", True)
    assert 0 < found.share <= HOPELESS


def test_where_packing_raises_it_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(PackedCodes, "of", broken)
    found = measure_packing(*SHAPE)
    assert (found.is_faster, found.failed) == (False, "could not create a primitive")


def test_where_it_is_less_exact_it_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = PackedCodes._multiply
    monkeypatch.setattr(
        PackedCodes, "_multiply", lambda self, rows, bias: exact(self, rows, bias) * 1.02
    )
    found = measure_packing(*SHAPE)
    assert not found.is_faster
    assert "times torch's" in found.failed


def test_a_large_weight_is_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WEIGHTS", 1 << 13)
    first = module._copies(1 << 30, 64)[0]
    assert (first.out_features, first.in_features) == (128, 64)
