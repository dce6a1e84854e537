"""A race: the schedules with the best predictions are scored, on few documents and then on more.

Knows losses and bytes; nothing of how a result is confirmed or stored.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.space import Candidate, StaticLosses, front
from d3cli.scoring.intervals import Drop, mean_loss, measure_drop

# The most candidates in each round.
ENTRANTS, SECOND_ROUND, FINALISTS = 14, 10, 6
# The fastest schedule predicted to be within the target may fail. Safer ones, which save these
# shares of what it saves, are scored as well.
SAFE_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Tried:
    """A scored candidate, and its drop on the first `documents` of the search half."""

    candidate: Candidate
    documents: int
    drop: Drop


def race(
    evaluator: Evaluator,
    pool: Sequence[Candidate],
    statics: StaticLosses,
    target: float,
    confidence: float,
    full_speed: float = 1.0,
) -> Iterator[Tried]:
    """Scores the most promising candidates on few documents, then fewer candidates on more.

    Args:
        full_speed: the speed of full depth in this form of the weights.

    Yields every measurement as it is made. A candidate's last one is on the most documents.
    """
    max_loss = math.log1p(target)  # nats per token
    few, more, all_ = evaluator.stages
    entrants = _spread(front(pool), -math.inf, 2 * max_loss, ENTRANTS)

    def measure(entrant: Candidate, documents: int) -> Tried:
        losses = evaluator.losses(entrant.schedule, documents)
        return Tried(entrant, documents, measure_drop(losses, confidence))

    first = []
    for entrant in entrants:
        first.append(measure(entrant, few))
        yield first[-1]
    # Predictions are off by about the same factor for all candidates: correct it.
    factor = _prediction_error(first, statics, few)
    at_full = mean_loss(statics.losses[0])
    corrected = front(
        [
            c if c.is_static else replace(c, predicted=at_full + factor * (c.predicted - at_full))
            for c in pool
        ]
    )
    second = [
        *_spread(corrected, 0.5 * max_loss, 1.4 * max_loss, SECOND_ROUND),
        *_spread([c for c in corrected if c.is_static], 0.5 * max_loss, 1.2 * max_loss, 3),
    ]
    tried = []
    for entrant in _distinct(second):
        tried.append(measure(entrant, more))
        yield tried[-1]
    hopeful = [t.candidate for t in tried if t.drop.low <= target]
    hopeful = sorted(hopeful, key=lambda c: c.speed)[-FINALISTS:]
    for entrant in _distinct([*_safe(corrected, max_loss, full_speed), *hopeful]):
        yield measure(entrant, all_)


def _safe(ordered: Sequence[Candidate], max_loss: float, full_speed: float) -> list[Candidate]:
    """Candidates slower than the fastest one that is predicted to be within the target."""
    within = [c for c in ordered if c.predicted <= max_loss]
    savings = [1 - full_speed / c.speed for c in within]
    if not within or savings[-1] <= 0:  # none, or none that saves more than its repair costs
        return []
    return [
        next(c for c, saved in zip(within, savings, strict=True) if saved >= share * savings[-1])
        for share in SAFE_SHARES
    ]


def _prediction_error(tried: Sequence[Tried], statics: StaticLosses, documents: int) -> float:
    """Measured loss over predicted loss of the decaying schedules, on the same documents.

    Both without the loss at full depth, which is known.
    """
    sums, tokens = statics.by_step(documents)
    at_full = float(sums[0].sum() / tokens.sum())
    measured = predicted = 0.0
    for one in tried:
        schedule = one.candidate.schedule
        if one.candidate.is_static:
            continue
        dropped = [schedule.num_dropped(t) for t in range(1, len(tokens))]
        lost = sums[dropped, np.arange(1, len(tokens))].sum() + sums[0, 0]
        predicted += float(lost / tokens.sum()) - at_full
        measured += math.log1p(one.drop.value) - at_full
    if predicted <= 0 or measured <= 0:
        return 1.0
    return min(max(measured / predicted, 0.25), 4.0)


def _spread(ordered: Sequence[Candidate], low: float, high: float, count: int) -> list[Candidate]:
    """Up to `count` candidates whose predicted loss is between two bounds, evenly spread."""
    inside = [c for c in ordered if low <= c.predicted <= high]
    if len(inside) <= count:
        return inside
    at = np.linspace(0, len(inside) - 1, count).round().astype(int)
    return [inside[i] for i in sorted(set(at.tolist()))]


def _distinct(entrants: Sequence[Candidate]) -> list[Candidate]:
    return list({entrant.schedule: entrant for entrant in entrants}.values())
