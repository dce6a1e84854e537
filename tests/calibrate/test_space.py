"""The schedules over an order, and the loss predicted for each."""

import numpy as np
import pytest

from d3cli.calibrate.clock import SearchClock
from d3cli.calibrate.costs import Yardstick, costs_by_bytes
from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.space import StaticLosses, candidates, score_prefixes, share_at_floor
from d3cli.calibrate.unit_order import fixed_order
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from tests.planted import documents, planted


def by_bytes(model: LoadedModel, new_tokens: int) -> Yardstick:
    """As if time followed the bytes."""
    costs = costs_by_bytes(model.weight_bytes, new_tokens - 1)
    return Yardstick(costs, costs, new_tokens)


def test_static_depths_are_predicted_exactly() -> None:
    model, texts = planted(), list(documents())
    evaluator = Evaluator(model, texts, (8, 20, len(texts)), SearchClock(1e9))
    order = fixed_order(costs_by_bytes(model.weight_bytes, 39), "layer", ["7", "2", "3"])
    losses = list(score_prefixes(evaluator, order, 20, 1e9))
    pool = candidates(StaticLosses(order, losses), by_bytes(model, 40))
    static = [candidate for candidate in pool if candidate.is_static]
    assert len(static) == 3
    for candidate in static:
        measured = np.concatenate(evaluator.losses(candidate.schedule, 20)).mean()
        assert candidate.predicted == pytest.approx(measured, abs=1e-9)


def test_byte_ratios_are_those_of_the_schedule() -> None:
    model, texts = planted(), list(documents())
    evaluator = Evaluator(model, texts, (8, 20, len(texts)), SearchClock(1e9))
    order = fixed_order(
        costs_by_bytes(model.weight_bytes, 39), "sublayer", ["7.mlp", "2.attn", "3.mlp"]
    )
    losses = list(score_prefixes(evaluator, order, 20, 1e9))
    pool = candidates(StaticLosses(order, losses), by_bytes(model, 40))
    assert len(pool) > 50
    for candidate in pool:
        expected = candidate.schedule.byte_ratio(40, model.weight_bytes, net_of_repair=True)
        assert candidate.byte_ratio == pytest.approx(expected)


def test_every_candidate_was_measured_at_its_minimum_depth() -> None:
    model, texts = planted(), list(documents())  # responses of 48 tokens
    evaluator = Evaluator(model, texts, (8, 20, len(texts)), SearchClock(1e9))
    order = fixed_order(costs_by_bytes(model.weight_bytes, 39), "layer", ["7", "3"])
    losses = list(score_prefixes(evaluator, order, 20, 1e9))
    pool = candidates(StaticLosses(order, losses), by_bytes(model, 1000))
    assert pool
    for candidate in pool:
        schedule = candidate.schedule
        least = schedule.depth(999)
        at_least = sum(schedule.depth(t) == least for t in range(48))
        assert at_least >= 0.1 * 48


def test_byte_ratios_of_very_long_replies() -> None:
    model, texts = planted(), list(documents())
    evaluator = Evaluator(model, texts, (8, 20, len(texts)), SearchClock(1e9))
    order = fixed_order(costs_by_bytes(model.weight_bytes, 39), "layer", ["7", "3"])
    losses = list(score_prefixes(evaluator, order, 20, 1e9))
    pool = candidates(StaticLosses(order, losses), by_bytes(model, 100_000))
    assert pool
    for candidate in pool[:: len(pool) // 5]:
        expected = candidate.schedule.byte_ratio(100_000, model.weight_bytes, net_of_repair=True)
        assert candidate.byte_ratio == pytest.approx(expected)


def test_the_share_of_tokens_at_the_minimum_depth() -> None:
    schedule = DepthSchedule(9, 0.5, 4, 1, 1, ("2", "3"))
    first = next(t for t in range(99) if schedule.depth(t) == 7)
    expected = sum(max(0, n - first) for n in (3, 9, 30)) / 42
    assert share_at_floor(schedule, [3, 9, 30]) == pytest.approx(expected)
    assert 0 < expected < 1
