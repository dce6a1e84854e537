"""How many tokens to draft: from what was accepted, and from what was measured to take how long.

With the share ``a`` of drafted tokens that are accepted, a draft of k tokens gives on average
``(1 - a^(k+1)) / (1 - a)`` tokens, one of them full depth's own. It takes ``k c + v(k)`` steps at
full depth: c for a drafted token, v(k) for the pass that verifies k tokens and reads one more. The
best k maximizes the tokens for each step. Knows nothing of models or of what drafts.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from statistics import median

from d3cli.model.decoder_pass import MOST_TOKENS

# Timings that an estimate looks at.
TIMINGS = 9
# A single timing counts for so many passes: another program may have slowed that one, and what it
# forbids would not be timed again.
SINGLE_COUNTS = 32
# What each further row of a pass costs before it was measured, in steps: as a hope, without which
# nothing would be tried, and to be prepared for.
ROW_COST, HIGH_ROW_COST = 0.05, 0.25
# The share that is expected before anything was tried, and how many trials that weighs.
PRIOR, PRIOR_WEIGHT = 0.5, 2.0
# What is left of the weight of earlier trials after a draft, after a token that was watched, and
# after any token of the reply.
FADE_BY_DRAFT, FADE_BY_WATCHED, FADE_BY_TOKEN = 0.9, 0.93, 0.995
# A draft must promise at least so many tokens in the time of one, since estimates err.
LEAST_GAIN = 1.03


def best_length(
    acceptance: float, draft_cost: float, verify_cost: Sequence[float], most: int
) -> tuple[int, float]:
    """The best number of tokens to draft, and the tokens that it gives in the time of a step.

    Args:
        acceptance: a.
        draft_cost: c.
        verify_cost: v, by the number of drafted tokens, from 0 on.
        most: the largest k.

    Returns:
        0 and 1.0 if no draft pays.
    """
    best, best_gain, given, chance = 0, 1.0, 1.0, 1.0
    for length in range(1, most + 1):
        chance *= acceptance
        given += chance
        gain = given / (length * draft_cost + verify_cost[length])
        if gain > max(best_gain, LEAST_GAIN):
            best, best_gain = length, gain
    return best, best_gain


class Acceptance:
    """The shares of drafted tokens that are accepted, by whatever they depend on."""

    def __init__(self) -> None:
        self._tried: dict[Hashable, tuple[float, float]] = {}  # tokens tried, tokens accepted

    def share(self, kind: Hashable, hope: float = PRIOR) -> float:
        """The share; `hope` if nothing was tried yet."""
        if kind not in self._tried:
            return hope
        tried, accepted = self._tried[kind]
        return (accepted + PRIOR * PRIOR_WEIGHT) / (tried + PRIOR_WEIGHT)

    def proven(self, kind: Hashable) -> float:
        """A share that does without hope; 0 if nothing was tried yet."""
        tried, accepted = self._tried.get(kind, (0.0, 0.0))
        return accepted / (tried + PRIOR_WEIGHT)

    def learn(self, kind: Hashable, tried: int, accepted: int, fade: float = FADE_BY_DRAFT) -> None:
        """A draft: tokens after the first one that was not accepted were not tried."""
        all_tried, all_accepted = self._tried.get(kind, (0.0, 0.0))
        self._tried[kind] = (all_tried * fade + tried, all_accepted * fade + accepted)

    def watch(self, kind: Hashable, *, is_right: bool) -> None:
        """A token that was known to a source, but not drafted."""
        self.learn(kind, 1, int(is_right), FADE_BY_WATCHED)

    def fade(self, tokens: int) -> None:
        """Forgets a little after `tokens` of the reply, so that what failed is tried again."""
        left = FADE_BY_TOKEN**tokens
        self._tried = {kind: (left * n, left * a) for kind, (n, a) in self._tried.items()}


class Costs:
    """Seconds of passes and drafts, as measured in this process; costs in steps at full depth."""

    def __init__(self) -> None:
        self._passes: dict[int, deque[float]] = {}  # by rows
        self._usual: dict[int, float] = {}  # by rows: seconds, of these timings
        self._last: dict[int, int] = {}  # by rows: the number of the last such pass
        self._count = 0  # of passes
        self._drafts: dict[Hashable, deque[float]] = {}  # of each drafted token

    @property
    def step(self) -> float | None:
        """Seconds of a step at full depth; None before the first."""
        return self._usual.get(1)

    @property
    def longest(self) -> int:
        """The most tokens of a pass that was measured; 1 before any."""
        return max(self._usual, default=1)

    def learn_pass(self, rows: int, seconds: float) -> None:
        times = self._passes.setdefault(rows, deque(maxlen=TIMINGS))
        times.append(seconds)
        self._count += 1
        self._last[rows] = self._count
        # Of two timings the shorter one, as nothing makes a pass too fast. Last, since an
        # interrupted reply may end at any line: what has a usual time has the rest as well.
        self._usual[rows] = median(times) if len(times) > 2 else min(times)

    def learn_draft(self, source: Hashable, prior: float, tokens: int, seconds: float) -> None:
        """A draft; the first one may also have read the prompt, so the prior counts twice."""
        if self.step is not None:
            first = [prior * self.step] * 2
            known = self._drafts.setdefault(source, deque(first, maxlen=TIMINGS))
            known.append(seconds / tokens)

    def draft(self, source: Hashable, prior: float) -> float:
        """The cost of a drafted token; `prior` before one was measured."""
        if source not in self._drafts or not self.step:
            return prior
        return median(self._drafts[source]) / self.step

    def verify(self, row_cost: float = ROW_COST) -> list[float]:
        """What passes cost that verify 0, 1, 2, ... tokens: as measured, and between those.

        Args:
            row_cost: of each row beyond the longest pass that was measured.
        """
        return self._between([rows for rows in self._usual if self._counts(rows)], row_cost)

    def verify_at_most(self) -> list[float]:
        """The same by all that was measured; further rows cost what those before them did."""
        row_cost = HIGH_ROW_COST
        if self.step and self.longest > 1:
            slope = (self._usual[self.longest] / self.step - 1) / (self.longest - 1)
            row_cost = max(ROW_COST, slope)
        return self._between(list(self._usual), row_cost)

    def _between(self, measured: Iterable[int], row_cost: float) -> list[float]:
        step = self.step
        if not step:
            return [1 + row_cost * drafted for drafted in range(MOST_TOKENS)]
        known = sorted(measured)
        found: list[float] = []
        for below, above in pairwise(known):
            low, high = self._usual[below] / step, self._usual[above] / step
            slope = (high - low) / (above - below)
            found += [low + slope * more for more in range(above - below)]
        low = self._usual[known[-1]] / step
        found += [low + row_cost * more for more in range(MOST_TOKENS + 1 - known[-1])]
        return [min(cost, rows) for rows, cost in enumerate(found, start=1)]  # plain steps would do

    def _counts(self, rows: int) -> bool:
        """Whether the timings of a pass still count: those of a plain step always do."""
        is_new = self._count - self._last[rows] < SINGLE_COUNTS
        return rows == 1 or len(self._passes[rows]) > 1 or is_new
