"""The space of depth schedules over a skip order, and the loss predicted for each.

Static depths are scored first. Their loss at each step of a reply predicts, at no cost, the loss of
any schedule over the same order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.costs import Yardstick
from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.unit_order import SearchKind, UnitOrder
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import TOLERANCE, DepthSchedule
from d3cli.kernels.quantization import Quantization
from d3cli.scoring.intervals import Losses, mean_loss

# Full-depth tokens before the decay, and the tokens over which it then reaches the floor. Each pace
# is a breakpoint of alpha, at which the token that drops the last unit changes. Paces between these
# differ by less than can be measured.
STARTS = (0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
PACES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024)
# The minimum depth of a reply must be the depth of this share of the scored tokens, so that no
# saving is promised where nothing was measured.
MIN_EVIDENCE = 0.1
# A schedule that saves a smaller share of the time, net of repair, is not worth its drop.
MIN_SAVED = 0.02


@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule in one form of the weights, what it saves and its predicted loss.

    Attributes:
        kind: the kind of units in its skip order; None for full depth.
        byte_ratio, speed: bytes and predicted time at full depth, in the form of the weights that
            it is compared with, over those here. For replies of the length asked for, net of
            repair.
        predicted: nats lost per token, predicted from static depths.
        quantization: of the weights; None as stored.
    """

    schedule: Schedule
    kind: SearchKind | None
    byte_ratio: float
    speed: float
    predicted: float
    quantization: Quantization | None = None

    @property
    def key(self) -> "CandidateKey":
        """What runs: the form of the weights, and the schedule."""
        return self.quantization, self.schedule

    @property
    def saved(self) -> float:
        """The share of time saved, net of repair."""
        return 1 - 1 / self.speed

    @property
    def by_prompt(self) -> bool:
        """Whether each prompt decides its skip order."""
        return isinstance(self.schedule, PromptSchedule)

    @property
    def is_static(self) -> bool:
        """Whether it drops all of its units from token 1 on."""
        return self.schedule.num_dropped(1) == self.schedule.max_dropped

    @property
    def sort(self) -> "Sort":
        """Whether it drops anything, and whether more of it later."""
        if not self.schedule.max_dropped:
            return Sort.FULL
        return Sort.CONSTANT if self.is_static else Sort.DECAYING


CandidateKey = tuple[Quantization | None, Schedule]


class Sort(StrEnum):
    """How depth goes over a reply."""

    FULL = "without decay"
    CONSTANT = "constant depth"
    DECAYING = "decaying depth"


def full_depth(yardstick: Yardstick, num_layers: int) -> Candidate:
    """Full depth in the form of a yardstick."""
    schedule = DepthSchedule.full(num_layers)
    return Candidate(schedule, None, *yardstick.full_depth, 0.0, yardstick.quantization)


@dataclass(frozen=True, slots=True)
class StaticLosses:
    """The losses of each prefix of an order at constant depth.

    The empty prefix is full depth. It loses what the form of the weights loses.
    """

    order: UnitOrder
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
    evaluator: Evaluator, order: UnitOrder, documents: int, max_loss: float, stride: int = 1
) -> Iterator[Losses]:
    """Losses of static depth for each prefix of an order, until one loses more than `max_loss`.

    The first item is full depth.

    Args:
        stride: only every so many prefixes are scored. Between them, losses are taken to grow
            evenly, as those of low planes nearly do.
    """
    before = evaluator.full_losses(documents)
    yield before
    scored = 0
    while scored < order.places:
        step = min(stride, order.places - scored)
        scored += step
        losses = evaluator.losses(order.static(scored), documents)
        for number in range(1, step):
            yield [a + (b - a) * number / step for a, b in zip(before, losses, strict=True)]
        yield losses
        before = losses
        if mean_loss(losses) > max_loss:
            return


def candidates(static: StaticLosses, yardstick: Yardstick) -> list[Candidate]:
    """Every schedule of the space, with what it saves and its predicted loss.

    A token that drops k units is predicted to lose what it lost when all tokens dropped k. In fact
    the tokens before it run deeper, so it loses a little less. If each prompt has its own order,
    the ratios are those of the mean bytes and times.
    """
    sums, tokens = static.by_step(len(static.losses[0]))
    order, reply_tokens = static.order, yardstick.new_tokens
    steps = reply_tokens - 1
    num_layers = len(order.weight_bytes.layers)
    saved_by = np.array([order.saved, order.saved_seconds])  # [2, places + 1]
    # Tokens 1, 2, …: after the last start and pace, every token runs at the floor.
    ts = np.arange(1, max(STARTS[-1] + PACES[-1] + 1, len(tokens)))
    scored = np.arange(1, len(tokens))
    found, seen = [], set[bytes]()
    for floor in range(1, len(sums)):
        dropped_weight = np.cumsum([0.0, *order.weights[:floor]])
        for start, pace in _start_and_pace(reply_tokens):
            alpha = _alpha(num_layers, order.before_last(floor), pace)
            # As in `DepthSchedule.num_dropped`, for all tokens at once.
            needed = num_layers * (1 - alpha ** np.maximum(0, ts - start)) - TOLERANCE
            dropped = np.minimum(np.searchsorted(dropped_weight, needed), floor)
            in_reply, in_text = dropped[:steps], dropped[: len(scored)]
            evidence = tokens[1:][in_text == floor].sum() / tokens.sum()
            if in_reply[-1] < floor or evidence < MIN_EVIDENCE or dropped.tobytes() in seen:
                continue
            seen.add(dropped.tobytes())
            at_floor = steps - len(in_reply)
            nbytes, seconds = saved_by[:, in_reply].sum(axis=1) + at_floor * saved_by[:, floor]
            ratios = yardstick.ratios(float(nbytes), float(seconds))
            lost = (sums[in_text, scored].sum() + sums[0, 0]) / tokens.sum()
            schedule = order.schedule(floor, alpha, start)
            kind = order.kind_of(floor)
            found.append(Candidate(schedule, kind, *ratios, float(lost), yardstick.quantization))
    return found


def share_at_floor(schedule: Schedule, responses: Sequence[int]) -> float:
    """The share of tokens that run at a schedule's minimum depth, in responses of these lengths."""
    longest, units = max(responses), schedule.max_dropped
    first = next((t for t in range(longest) if schedule.num_dropped(t) == units), longest)
    return sum(max(0, length - first) for length in responses) / sum(responses)


def _start_and_pace(reply_tokens: int) -> Iterator[tuple[int, int]]:
    for start in STARTS:
        for pace in PACES:
            if start + pace < reply_tokens:
                yield start, pace


def _alpha(num_layers: int, before_last: float, pace: int) -> float:
    """The alpha at which the last unit is dropped `pace` tokens after the start."""
    alpha: float = (1 - (before_last + 1e-4) / num_layers) ** (1 / pace)
    return math.floor(alpha * 1e6) / 1e6  # rounded down: never a token later


def front(pool: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that none beats in both speed and predicted loss, the slowest first."""
    best: list[Candidate] = []
    for candidate in sorted(pool, key=lambda c: (-c.speed, c.predicted)):
        if not best or candidate.predicted < best[-1].predicted:
            best.append(candidate)
    return best[::-1]
