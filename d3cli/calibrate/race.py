"""Which depth schedules over a skip order are worth having: the space, and a race through it.

Static depths are scored first. What they lose at each step foretells, cheaply, what any schedule
over the same order would lose; the best of thousands are then scored themselves, on few documents
and then on more. Knows losses and bytes; nothing of how a result is confirmed or stored.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.order import UnitKind, schedule_of, static_schedule
from d3cli.depth.schedule import TOLERANCE, DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.intervals import Drop, Losses, measure_drop, total

# Full-depth tokens before the decay, and over how many tokens it then reaches the floor. Each pace
# is a breakpoint of alpha, where the last unit's first token changes; the paces between them differ
# by less than the measurement can tell.
STARTS = (0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
PACES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024)

# The least depth that a reply reaches must be the depth of this share of the scored tokens, so
# that no saving is promised where nothing was measured.
LEAST_EVIDENCE = 0.1

ENTRANTS, SECOND_ROUND, FINALISTS = 14, 10, 6
# There must be safe schedules to fall back on: those that save these shares of what the fastest
# one does that is foretold to keep within the target.
SAFE_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule and what is foretold of it.

    Attributes:
        kind: what its skip order consists of.
        byte_ratio: for replies of the length asked for, net of repair.
        foretold: nats lost per token, from static depths.
    """

    schedule: DepthSchedule
    kind: UnitKind
    byte_ratio: float
    foretold: float

    @property
    def is_static(self) -> bool:
        """Whether all of its units go at token 1."""
        return self.schedule.num_dropped(1) == len(self.schedule.skip_order)


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate that was scored, and its drop on so many documents of the search half."""

    candidate: Candidate
    documents: int
    drop: Drop


@dataclass(frozen=True, slots=True)
class StaticLosses:
    """What each prefix of a skip order loses at constant depth; the empty prefix loses nothing."""

    order: tuple[str, ...]
    losses: list[Losses]

    def by_step(self, documents: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Losses summed over the first documents, ``[prefixes, T]``, and tokens ``[T]``."""
        longest = max(len(loss) for loss in self.losses[0][:documents])
        sums = np.zeros((len(self.losses), longest))
        tokens = np.zeros(longest)
        for prefix, losses in enumerate(self.losses):
            for loss in losses[:documents]:
                sums[prefix, : len(loss)] += loss
        for loss in self.losses[0][:documents]:
            tokens[: len(loss)] += 1
        return sums, tokens


def score_prefixes(
    model: LoadedModel,
    evaluator: Evaluator,
    order: Sequence[str],
    documents: int,
    most_lost: float,
) -> Iterator[Losses]:
    """Losses of static depth for each prefix of an order, until one loses more than `most_lost`.

    The first item is full depth's, which loses nothing.
    """
    yield [np.zeros(len(d.response_ids)) for d in evaluator.documents[:documents]]
    for length in range(1, len(order) + 1):
        losses = evaluator.losses(static_schedule(model, order[:length]), documents)
        yield losses
        if total(losses) > most_lost:
            return


def candidates(
    model: LoadedModel, kind: UnitKind, static: StaticLosses, reply_tokens: int
) -> list[Candidate]:
    """Every schedule of the space, with its byte ratio and what it is foretold to lose.

    Foretold from static depths: a token that drops k units is taken to lose what it lost where all
    tokens dropped k. The tokens before it ran deeper, so it will lose a little less.
    """
    sums, tokens = static.by_step(len(static.losses[0]))
    bytes_ = model.weight_bytes
    saved_by = np.cumsum([0, *(bytes_.of(unit) for unit in static.order)])
    weights = [bytes_.weight(unit) for unit in static.order]
    found, seen = [], set[bytes]()
    # Behind the last start and pace, every token runs at the floor.
    steps = np.arange(1, max(STARTS[-1] + PACES[-1] + 1, len(tokens)))
    measured = np.arange(1, len(tokens))
    full = bytes_.total * (reply_tokens - 1)
    for floor in range(1, len(sums)):
        dropped_weight = np.cumsum([0.0, *weights[:floor]])
        for start, pace in _start_and_pace(reply_tokens):
            alpha = _alpha(model.num_layers, dropped_weight[-2], pace)
            needed = model.num_layers * (1 - alpha ** np.maximum(0, steps - start)) - TOLERANCE
            dropped = np.minimum(np.searchsorted(dropped_weight, needed), floor)
            in_reply = dropped[: reply_tokens - 1]
            here = dropped[: len(measured)]
            evidence = tokens[1:][here == floor].sum() / tokens.sum()
            if in_reply[-1] < floor or evidence < LEAST_EVIDENCE or dropped.tobytes() in seen:
                continue
            seen.add(dropped.tobytes())
            at_floor = reply_tokens - 1 - len(in_reply)
            saved = saved_by[in_reply].sum() + at_floor * saved_by[floor]
            ratio = full / (full - saved + bytes_.total)
            lost = sums[here, measured].sum() / tokens.sum()
            schedule = schedule_of(model, static.order[:floor], alpha, start)
            found.append(Candidate(schedule, kind, float(ratio), float(lost)))
    return found


def at_least_depth(schedule: DepthSchedule, responses: Sequence[int]) -> float:
    """The share of tokens, of responses so long, that run at a schedule's least depth."""
    longest, units = max(responses), len(schedule.skip_order)
    first = next((t for t in range(longest) if schedule.num_dropped(t) == units), longest)
    return sum(max(0, length - first) for length in responses) / sum(responses)


def _start_and_pace(reply_tokens: int) -> Iterator[tuple[int, int]]:
    for start in STARTS:
        for pace in PACES:
            if start + pace < reply_tokens:
                yield start, pace


def _alpha(num_layers: int, before_last: float, pace: int) -> float:
    """The alpha at which the last unit goes `pace` tokens after the start."""
    alpha: float = (1 - (before_last + 1e-4) / num_layers) ** (1 / pace)
    return math.floor(alpha * 1e6) / 1e6  # downward: never a token later


def front(pool: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that no other one beats in both bytes and foretold loss, the slowest first."""
    best: list[Candidate] = []
    for candidate in sorted(pool, key=lambda c: (-c.byte_ratio, c.foretold)):
        if not best or candidate.foretold < best[-1].foretold:
            best.append(candidate)
    return best[::-1]


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
    # Foretold losses are off by about the same factor for all: correct it before going on.
    off = _foretelling_error(first, statics, few)
    corrected = front([c if c.is_static else replace(c, foretold=c.foretold * off) for c in pool])
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
    """Slower ones on the front than the fastest that is foretold to keep within the target."""
    within = [c for c in ordered if c.foretold <= most]
    savings = [1 - 1 / c.byte_ratio for c in within]
    if not within or savings[-1] <= 0:  # nothing, or nothing that pays for its repair
        return []
    return [
        next(c for c, saved in zip(within, savings, strict=True) if saved >= share * savings[-1])
        for share in SAFE_SHARES
    ]


def _foretelling_error(tried: Sequence[Tried], statics: StaticLosses, documents: int) -> float:
    """Measured over foretold loss of decaying schedules, on the same documents."""
    sums, tokens = statics.by_step(documents)
    measured = foretold = 0.0
    for one in tried:
        schedule = one.candidate.schedule
        if one.candidate.is_static:
            continue
        dropped = [schedule.num_dropped(t) for t in range(1, len(tokens))]
        foretold += float(sums[dropped, np.arange(1, len(tokens))].sum() / tokens.sum())
        measured += math.log1p(one.drop.value)
    if foretold <= 0 or measured <= 0:
        return 1.0
    return min(max(measured / foretold, 0.25), 4.0)


def _spread(ordered: Sequence[Candidate], least: float, most: float, count: int) -> list[Candidate]:
    """Up to `count` candidates between two foretold losses, evenly spread."""
    inside = [c for c in ordered if least <= c.foretold <= most]
    if len(inside) <= count:
        return inside
    at = np.linspace(0, len(inside) - 1, count).round().astype(int)
    return [inside[i] for i in sorted(set(at.tolist()))]


def _distinct(entrants: Sequence[Candidate]) -> list[Candidate]:
    return list({entrant.schedule: entrant for entrant in entrants}.values())
