"""How products are compared: in turn, by a margin in every round. No test measures time."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

from d3cli.kernels import contest
from d3cli.kernels import measure as module
from d3cli.kernels.contest import Outcome, Watch, compare
from d3cli.kernels.measure import bfloat16_is_fast, decide, measure
from d3cli.kernels.measure_nested import NestedTimes, measure_nested
from d3cli.kernels.products import PACKED, Product, Products
from tests.kernels.conftest import needs_packing

LINEAR, MV, FLOAT32 = Product.LINEAR, Product.MV, Product.FLOAT32
OWN = Product.WITHOUT_ONEDNN
FIRST = Product.WEIGHT_FIRST
PACK, FOUR = Product.PACKED, Product.PACKED_FOUR


class FakeClock:
    """Advances by a set time in each call of a candidate, and writes down who was called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, *seconds: float) -> Callable[[], None]:
        """A candidate that takes these times in turn."""
        count = 0

        def call() -> None:
            nonlocal count
            self.now += seconds[count % len(seconds)]
            self.calls.append(name)
            count += 1

        return call

    @property
    def visits(self) -> str:
        """Who was called, without repetitions."""
        previous = ["", *self.calls]
        return "".join(
            now for before, now in zip(previous, self.calls, strict=False) if before != now
        )


def outcome(default: Sequence[float], **others: Sequence[float]) -> Outcome[str]:
    return Outcome("default", {"default": list(default), **{k: list(v) for k, v in others.items()}})


def test_the_candidates_take_turns_forward_and_backward() -> None:
    clock = FakeClock()
    calls = {name: clock.candidate(name, 1.0) for name in "abc"}
    compare(calls, "a", rounds=2, clock=clock)
    assert clock.visits == "abc" + "abcba" + "bcba"  # first each once, to warm up


def test_a_drift_of_the_machine_favours_nobody() -> None:
    """Each call takes longer than the one before."""
    clock = FakeClock()

    def slower() -> None:
        clock.now += 1 + clock.now / 1000

    found = compare({"a": slower, "b": slower, "c": slower}, "a", rounds=3, clock=clock)
    assert found.winner("bc") == "a"


def test_a_candidate_that_is_faster_in_every_round_wins() -> None:
    clock = FakeClock()
    calls = {"a": clock.candidate("a", 1.0), "b": clock.candidate("b", 0.8)}
    found = compare(calls, "a", rounds=3, clock=clock)
    assert found.winner("b") == "b"
    assert found.seconds("b") == pytest.approx(0.8)
    assert found.is_steady


@pytest.mark.parametrize(
    ("times", "winner"),
    [
        ([0.9, 0.9, 0.9], "other"),
        ([0.96, 0.96, 0.96], "default"),  # by less than the margin
        ([0.4, 0.4, 1.0], "default"),  # fast only at times
    ],
)
def test_the_margin_counts_in_every_round(times: list[float], winner: str) -> None:
    assert outcome([1.0, 1.0, 1.0], other=times).winner(["other"]) == winner


def test_the_steadier_of_two_winners_wins() -> None:
    found = outcome([1.0, 1.0], steady=[0.6, 0.6], bimodal=[0.4, 0.9])
    assert found.winner(["bimodal", "steady"]) == "steady"


def test_a_candidate_that_raises_is_out_and_named() -> None:
    clock = FakeClock()

    def broken() -> None:
        raise RuntimeError("no such instruction\nat 0x7f")

    found = compare({"a": clock.candidate("a", 1.0), "b": broken}, "a", rounds=2, clock=clock)
    assert found.winner("b") == "a"
    assert found.failed == {"b": "no such instruction at 0x7f"}


def test_a_hopeless_candidate_is_not_timed_further() -> None:
    clock = FakeClock()
    calls = {"a": clock.candidate("a", 1.0), "b": clock.candidate("b", 99.0)}
    found = compare(calls, "a", rounds=5, clock=clock)
    assert "b" not in found.rounds
    assert clock.calls.count("b") < 5
    assert compare(calls, "a", rounds=5, hopeless=math.inf, clock=clock).seconds("b") == 99


def test_nested_planes_have_times_however_slow_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d3cli.kernels.measure_nested.SHAPE", (64, 64))
    clock = FakeClock()
    calls = iter([clock.candidate("both", 99.0), clock.candidate("high", 50.0)])
    monkeypatch.setattr("d3cli.kernels.measure_nested._in_turn", lambda *_: next(calls))
    monkeypatch.setattr(
        "d3cli.kernels.measure_nested.in_turn", lambda *_: clock.candidate("bfloat16", 1.0)
    )
    monkeypatch.setattr("d3cli.kernels.measure_nested.compare", partial(compare, clock=clock))
    assert measure_nested(Products()) == NestedTimes(99.0, 50.0)


def test_a_busy_machine_is_noticed() -> None:
    assert outcome([1.0, 1.1, 1.2]).is_steady
    assert not outcome([1.0, 1.1, 2.0]).is_steady


@pytest.mark.parametrize(("own", "awake"), [(9.0, True), (7.0, False)])
def test_a_thread_that_others_stop_is_noticed(
    own: float, awake: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All candidates may be slowed down alike: their rounds do not show it."""
    times = {"perf_counter": 0.0, "thread_time": 0.0}
    for name in times:
        monkeypatch.setattr(contest.time, name, lambda name=name: times[name])
    watch = Watch()
    times |= {"perf_counter": 10.0, "thread_time": own}
    assert watch.is_awake == awake


def rows(**seconds: float) -> Outcome[Product]:
    """An outcome with the same time in each round; `linear` takes one second."""
    names = {"linear": LINEAR, "mv": MV, "wide": FLOAT32, "pack": PACK, "four": FOUR}
    names |= {"first": FIRST, "own": OWN}
    return Outcome(
        LINEAR, {names[name]: [s] * 3 for name, s in ({"linear": 1.0} | seconds).items()}
    )


SAME = rows(pack=1.0, wide=1.0)


@pytest.mark.parametrize(
    ("one", "several", "products"),
    [
        (rows(), SAME, Products()),
        (rows(mv=0.7), SAME, Products(one=MV)),
        (rows(mv=0.98), SAME, Products()),
        (rows(mv=0.9, own=0.5), rows(own=0.9), Products(OWN, OWN, OWN, OWN)),
        (rows(own=0.62, pack=0.6), SAME, Products(one=OWN)),
        (rows(own=0.6, pack=0.8), rows(pack=0.5), PACKED),  # drafts are verified much faster
        (rows(own=0.6, pack=0.8), rows(pack=0.8), Products(one=OWN)),
        (rows(own=0.6, pack=0.82), rows(pack=0.5), Products(one=OWN)),
        (rows(pack=0.6, four=0.8), SAME, PACKED),
        (rows(pack=0.8, four=0.6), SAME, Products(FOUR, PACK, PACK, PACK)),
        (rows(mv=0.62, pack=0.6), SAME, Products(one=MV)),  # packing must be worth it
        (rows(pack=0.6), rows(pack=1.3), Products()),  # it would slow down a prefill
        (rows(pack=0.6), rows(), Products()),  # it does not take many rows
        (rows(), rows(wide=0.5), Products(LINEAR, FLOAT32, FLOAT32, FLOAT32)),
        (rows(mv=0.7, pack=0.9), rows(wide=0.5), Products(MV, FLOAT32, FLOAT32, FLOAT32)),
    ],
)
def test_what_is_chosen(
    one: Outcome[Product], several: Outcome[Product], products: Products
) -> None:
    assert decide(one, dict.fromkeys(("few", "some", "many"), several)) == products


def test_each_number_of_rows_chooses_for_itself() -> None:
    several = {"few": rows(wide=2.0), "some": rows(wide=1.0), "many": rows(wide=0.5)}
    assert decide(rows(), several) == Products(many=FLOAT32)
    several = {"few": rows(first=0.5), "some": rows(first=0.6, wide=0.5), "many": rows()}
    assert decide(rows(), several) == Products(few=FIRST, some=FLOAT32)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the real candidates, a few times."""
    monkeypatch.setattr(module, "POOL_BYTES", 1 << 16)
    monkeypatch.setattr(contest, "VISIT_S", 0.0)


@pytest.mark.usefixtures("little")
class TestWithRealProducts:
    def test_all_that_run_here_are_compared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compared: list[set[Product]] = []

        def spy(calls: dict[Product, Callable[[], object]], *words: object, **more: int) -> object:
            compared.append(set(calls))
            return compare(calls, LINEAR, rounds=more["rounds"])

        monkeypatch.setattr(module, "compare", spy)
        found = measure(256, 128)
        assert found.failed == {}
        assert found.speed > 0
        one, *several = compared
        assert {LINEAR, MV} <= one
        assert all({LINEAR, FLOAT32} <= each for each in several)
        assert [FIRST in each for each in compared] == [False, True, True, False]
        assert len(several) == 3

    @needs_packing
    def test_packed_ones_are_compared_where_they_run(self) -> None:
        candidates, failed = module._exact_products(module.random_weight(256, 128))
        assert set(candidates) == set(Product)
        assert failed == {}

    def test_a_product_that_is_less_exact_is_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def careless(rows: torch.Tensor, weight: torch.Tensor, _: object) -> torch.Tensor:
            sums = (rows * weight).view(len(weight), 8, -1)
            return sum(sums.unbind(1)).sum(dim=-1)[None].bfloat16() * 1.01

        monkeypatch.setitem(module_functions(), MV, careless)
        found = measure(256, 128)
        assert found.products.one is not MV
        assert "times torch's" in found.failed[MV]

    def test_a_product_that_raises_is_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> torch.Tensor:
            raise RuntimeError("could not create a primitive")

        for product in (MV, FLOAT32, FIRST):
            monkeypatch.setitem(module_functions(), product, broken)
        found = measure(256, 128)
        assert found.failed[MV] == found.failed[FLOAT32] == "could not create a primitive"
        assert found.products.one is not MV

    def test_a_large_weight_is_measured_in_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MOST_WEIGHTS", 1 << 12)
        assert module.random_weight(1 << 40, 64).shape == (64, 64)


def module_functions() -> dict[Product, object]:
    from d3cli.kernels import products

    return products._FUNCTIONS  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("one", "many", "fast"),
    [(0.9, 1.2, True), (1.0, 1.0, True), (1.05, 0.5, False), (0.5, 1.3, False)],
)
def test_bfloat16_must_not_be_slower_than_float32(
    monkeypatch: pytest.MonkeyPatch, one: float, many: float, fast: bool
) -> None:
    monkeypatch.setattr(module, "POOL_BYTES", 1 << 10)
    outcomes = [
        Outcome(torch.float32, {torch.float32: [1.0], torch.bfloat16: [seconds]})
        for seconds in (one, many)
    ]
    monkeypatch.setattr(module, "compare", lambda *_, **__: outcomes.pop(0))
    monkeypatch.setattr(contest, "AWAKE", 0.0)
    assert bfloat16_is_fast(Products(), 16, 16) == fast
