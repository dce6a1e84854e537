"""Which depth schedules over a skip order are worth having: the space, and a race through it.

Static depths are scored first. What they lose at each step foretells, cheaply, what any schedule
over the same order would lose; the best of thousands are then scored themselves, on few documents
and then on more. Knows losses and bytes; nothing of how a result is confirmed or stored.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.space import Candidate, StaticLosses, front
from d3cli.scoring.intervals import Drop, measure_drop

ENTRANTS, SECOND_ROUND, FINALISTS = 14, 10, 6
# There must be safe schedules to fall back on: those that save these shares of what the fastest
# one does that is predicted to keep within the target.
SAFE_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate that was scored, and its drop on so many documents of the search half."""

    candidate: Candidate
    documents: int
    drop: Drop


def race(
    evaluator: Evaluator,
    pool: Sequence[Candidate],
    statics: StaticLosses,
    target: float,
    confidence: float,
) -> Iterator[Tried]:
    """Scores the most promising candidates on few documents, then fewer candidates on more.

    Gives every measurement as it is made; of a candidate, the one on the most documents counts.
    """
    most = math.log1p(target)
    few, more, all_ = evaluator.stages
    entrants = _spread(front(pool), -math.inf, 2 * most, ENTRANTS)

    def measure(entrant: Candidate, documents: int) -> Tried:
        losses = evaluator.losses(entrant.schedule, documents)
        return Tried(entrant, documents, measure_drop(losses, confidence))

    first = []
    for entrant in entrants:
        first.append(measure(entrant, few))
        yield first[-1]
    # Predicted losses are off by about the same factor for all: correct it before going on.
    off = _prediction_error(first, statics, few)
    corrected = front([c if c.is_static else replace(c, predicted=c.predicted * off) for c in pool])
    second = [
        *_spread(corrected, 0.5 * most, 1.4 * most, SECOND_ROUND),
        *_spread([c for c in corrected if c.is_static], 0.5 * most, 1.2 * most, 3),
    ]
    tried = []
    for entrant in _distinct(second):
        tried.append(measure(entrant, more))
        yield tried[-1]
    hopeful = [t.candidate for t in tried if t.drop.low <= target]
    hopeful = sorted(hopeful, key=lambda c: c.byte_ratio)[-FINALISTS:]
    for entrant in _distinct([*_safe(corrected, most), *hopeful]):
        yield measure(entrant, all_)


def _safe(ordered: Sequence[Candidate], most: float) -> list[Candidate]:
    """Slower ones on the front than the fastest that is predicted to keep within the target."""
    within = [c for c in ordered if c.predicted <= most]
    savings = [1 - 1 / c.byte_ratio for c in within]
    if not within or savings[-1] <= 0:  # nothing, or nothing that pays for its repair
        return []
    return [
        next(c for c, saved in zip(within, savings, strict=True) if saved >= share * savings[-1])
        for share in SAFE_SHARES
    ]


def _prediction_error(tried: Sequence[Tried], statics: StaticLosses, documents: int) -> float:
    """Measured over predicted loss of decaying schedules, on the same documents."""
    sums, tokens = statics.by_step(documents)
    measured = predicted = 0.0
    for one in tried:
        schedule = one.candidate.schedule
        if one.candidate.is_static:
            continue
        dropped = [schedule.num_dropped(t) for t in range(1, len(tokens))]
        predicted += float(sums[dropped, np.arange(1, len(tokens))].sum() / tokens.sum())
        measured += math.log1p(one.drop.value)
    if predicted <= 0 or measured <= 0:
        return 1.0
    return min(max(measured / predicted, 0.25), 4.0)


def _spread(ordered: Sequence[Candidate], least: float, most: float, count: int) -> list[Candidate]:
    """Up to `count` candidates between two predicted losses, evenly spread."""
    inside = [c for c in ordered if least <= c.predicted <= most]
    if len(inside) <= count:
        return inside
    at = np.linspace(0, len(inside) - 1, count).round().astype(int)
    return [inside[i] for i in sorted(set(at.tolist()))]


def _distinct(entrants: Sequence[Candidate]) -> list[Candidate]:
    return list({entrant.schedule: entrant for entrant in entrants}.values())
