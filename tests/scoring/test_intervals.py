"""Intervals of perplexity ratios."""

import math

import numpy as np
import pytest

from d3cli.scoring.intervals import (
    drop_by_position,
    measure_drop,
    measure_rise,
    median_interval,
)


def test_the_drop_is_the_perplexity_ratio_minus_one() -> None:
    losses = [np.array([0.1, 0.3]), np.array([0.0, -0.1, 0.2])]
    drop = measure_drop(losses, 0.9)
    assert drop.value == pytest.approx(math.exp(0.5 / 5) - 1)
    assert drop.low < drop.value < drop.high


def test_without_any_loss_the_interval_is_zero() -> None:
    drop = measure_drop([np.zeros(3), np.zeros(5)], 0.9)
    assert (drop.low, drop.value, drop.high) == (0, 0, 0)


def test_equal_losses_have_an_interval_of_no_width() -> None:
    drop = measure_drop([np.full(4, 0.25)] * 10, 0.9)
    assert drop.low == drop.value == drop.high == pytest.approx(math.expm1(0.25))


def test_the_upper_bound_holds_with_the_requested_confidence() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        lengths = rng.integers(5, 200, size=40)
        # As in real texts, most documents lose little and a few lose much; 0.02 nats on average.
        losses = [rng.exponential(0.02) + rng.normal(0, 0.1, n) for n in lengths]
        held += measure_drop(losses, 0.9, seed=trial).high >= math.expm1(0.02)
    assert 0.84 <= held / 200 <= 0.96


def test_the_same_losses_give_the_same_interval() -> None:
    rng = np.random.default_rng(1)
    losses = [rng.normal(0.01, 0.1, 30) for _ in range(20)]
    assert measure_drop(losses, 0.9) == measure_drop(losses, 0.9)
    wide, narrow = measure_drop(losses, 0.99), measure_drop(losses, 0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_rise_compares_texts_of_different_lengths() -> None:
    theirs = [np.array([1.0, 1.2]), np.array([0.8] * 5), np.array([1.1] * 3)]
    ours = [loss[:-1] + 0.05 for loss in theirs]
    mean = [np.concatenate(side).mean() for side in (ours, theirs)]
    rise = measure_rise(ours, theirs, 0.9)
    assert rise.value == pytest.approx(math.expm1(mean[0] - mean[1]))
    assert rise.low <= rise.value <= rise.high


def test_stretches_of_the_reply_cover_every_token_once() -> None:
    losses = [np.full(40, 0.1), np.full(70, 0.2)]
    stretches = list(drop_by_position(losses))
    assert [(begin, end, tokens) for begin, end, tokens, _ in stretches] == [
        (0, 32, 64),
        (32, 64, 40),
        (64, 70, 6),
    ]
    assert stretches[0][3] == pytest.approx(math.expm1(0.15))
    assert stretches[2][3] == pytest.approx(math.expm1(0.2))


def test_the_median_has_an_interval_around_it() -> None:
    ratios = np.random.default_rng(2).normal(1.2, 0.1, 25)
    low, high = median_interval(ratios.tolist())
    assert ratios.min() < low < float(np.median(ratios)) < high < ratios.max()
