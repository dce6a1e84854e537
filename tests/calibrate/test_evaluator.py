"""Losses of schedules against full depth."""

import math

import numpy as np
import pytest

from d3cli.base.errors import GenerationError
from d3cli.calibrate.clock import SearchClock
from d3cli.calibrate.evaluator import Evaluator
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.families import random_ids, tiny
from tests.planted import documents, planted


def test_losses_are_the_same_without_memory_to_keep_anything() -> None:
    model, texts = planted(), list(documents())
    schedule = static_schedule(model.weight_bytes, ["7", "3"])
    kept = Evaluator(model, texts, (8, len(texts)), SearchClock(1e9))
    kept.remember(DepthSchedule.full(9), [1, 2])
    bare = Evaluator(model, texts, (8, len(texts)), SearchClock(1e9), kept_bytes=0)
    for count in (8, len(texts)):
        for one, other in zip(
            kept.losses(schedule, count), bare.losses(schedule, count), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_what_stays_in_memory_counts_as_kept() -> None:
    """Where no further layer is remembered, those from before are not let go."""
    model, texts = planted(), list(documents())[:4]
    evaluator = Evaluator(model, texts, (4,), SearchClock(1e9))
    evaluator.remember(DepthSchedule.full(9), range(8))
    evaluator.losses(static_schedule(model.weight_bytes, ["7"]), 4)
    [batch] = evaluator._batches[4]
    left = evaluator._left
    evaluator.remember(DepthSchedule.full(9), [])
    evaluator.losses(static_schedule(model.weight_bytes, ["3"]), 4)
    assert batch._scorer is not None and len(batch._scorer._states) == 8
    assert evaluator._left == left


def test_a_loss_is_full_depths_log_probability_minus_the_schedules() -> None:
    model, texts = planted(), list(documents())[:12]
    schedule = DepthSchedule(9, 0.95, 2, 1, 1, ("7", "2", "3"))
    found = Evaluator(model, texts, (12,), SearchClock(1e9)).losses(schedule, 12)
    full = score(model, texts, DepthSchedule.full(9))
    ours = score(model, texts, schedule)
    for loss, f, o in zip(found, full, ours, strict=True):
        np.testing.assert_allclose(loss, (f.log_probs - o.log_probs).numpy(), atol=1e-4)


def test_a_token_without_probability_costs_the_maximum_loss() -> None:
    model = tiny("llama").gated
    texts = [Document(random_ids(4, seed=s), random_ids(9, seed=50 + s)) for s in range(4)]
    evaluator = Evaluator(model, texts, (4,), SearchClock(1e9))
    evaluator.losses(DepthSchedule.full(8), 4)  # computes full depth's scores
    own = model.gate.layers[-1].forward
    model.gate.layers[-1].forward = lambda hidden, *a, **k: own(hidden, *a, **k) * math.nan
    try:
        losses = evaluator.losses(static_schedule(model.weight_bytes, ["3"]), 4)
        with pytest.raises(GenerationError, match="not finite"):
            Evaluator(model, texts, (4,), SearchClock(1e9)).losses(DepthSchedule.full(8), 4)
    finally:
        model.gate.layers[-1].forward = own
    assert all((loss[1:] == 100).all() for loss in losses)
