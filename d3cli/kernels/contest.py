"""Compares functions by their time: in turn, by a margin in every round.

The candidates take turns: in each round all of them forward, then all of them backward (ABBA), so
that a drift of the machine's speed meets them alike. A candidate replaces the default only if it is
faster by a margin in every round, so one that is fast only at times loses, and so does one that
raises. Knows nothing of what the functions compute.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Generic, TypeVar

from d3cli.base.errors import one_line

# A candidate must take at most this share of the default's time, in every round.
MARGIN = 0.95
# By default, how slow a candidate may be before the rounds.
HOPELESS = 3.0
# Each visit times at least this many calls, and this many seconds.
LEAST_CALLS, MOST_CALLS, VISIT_S = 5, 40, 0.001
# If the default's slowest round takes this many times as long as its fastest, the machine is busy.
# So it is if this thread runs for less than this share of the time: it was stopped, or slept until
# other programs let another thread go on.
UNSTEADY, AWAKE = 1.5, 0.8

T = TypeVar("T", bound=Hashable)
Clock = Callable[[], float]
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """The times of some candidates.

    Attributes:
        default: the candidate to beat.
        rounds: seconds of one call of each candidate, in each round.
        failed: the candidates that raised, and why.
    """

    default: T
    rounds: Mapping[T, list[float]]
    failed: Mapping[T, str] = field(default_factory=dict)

    def seconds(self, candidate: T) -> float:
        """The median over the rounds."""
        return median(self.rounds[candidate])

    def worst_share(self, candidate: T) -> float:
        """The largest share of the default's time that a candidate took in a round."""
        pairs = zip(self.rounds[candidate], self.rounds[self.default], strict=True)
        return max(own / default for own, default in pairs)

    def winner(self, among: Iterable[T]) -> T:
        """The fastest of some candidates that beat the default in every round, else the default."""
        beats = [c for c in among if c in self.rounds and self.worst_share(c) < MARGIN]
        return min(beats, key=self.worst_share, default=self.default)

    @property
    def is_steady(self) -> bool:
        """Whether the default took about as long in each round."""
        times = self.rounds[self.default]
        return max(times) < UNSTEADY * min(times)


def compare(
    candidates: Mapping[T, Call],
    default: T,
    *,
    rounds: int,
    hopeless: float = HOPELESS,
    clock: Clock = time.perf_counter,
) -> Outcome[T]:
    """Times candidates in turn: forward, then backward, in each round.

    Args:
        hopeless: a candidate that takes this many times as long as the default before the rounds is
            out. With infinity, each has its times.
    """
    first: dict[T, float] = {}
    failed: dict[T, str] = {}
    for candidate, call in candidates.items():
        try:
            first[candidate] = _visit(call, 3, 0.0, clock)
        except Exception as error:  # a kernel that does not run here may raise anything
            if candidate == default:
                raise
            failed[candidate] = one_line(error)[:120]
    running = [c for c in first if first[c] <= hopeless * first[default]]
    times: dict[T, list[float]] = {candidate: [] for candidate in running}
    for _ in range(rounds):
        there = {c: _visit(candidates[c], LEAST_CALLS, VISIT_S, clock) for c in running}
        back = {c: _visit(candidates[c], LEAST_CALLS, VISIT_S, clock) for c in reversed(running)}
        for candidate in running:
            times[candidate].append((there[candidate] + back[candidate]) / 2)
    return Outcome(default, times, failed)


def _visit(call: Call, least: int, seconds: float, clock: Clock) -> float:
    """The median time of some calls."""
    times: list[float] = []
    while len(times) < least or (len(times) < MOST_CALLS and sum(times) < seconds):
        begun = clock()
        call()
        times.append(clock() - begun)
    return median(times)


class Watch:
    """Tells whether this thread has been running all the time."""

    def __init__(self) -> None:
        self._begun, self._own = time.perf_counter(), time.thread_time()

    @property
    def is_awake(self) -> bool:
        own, wall = time.thread_time() - self._own, time.perf_counter() - self._begun
        return own > AWAKE * wall
