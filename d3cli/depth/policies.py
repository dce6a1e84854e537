"""Rival policies: which layers a token runs by other methods than D³. No torch.

Each policy is a depth schedule over its own skip order, so that decoding, one-pass scoring and
traces treat all alike. A policy is compared at equal bytes, hence every one is a family of
schedules, of which the one with the nearest byte ratio is taken.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import accumulate

from d3cli.depth.linear_schedule import LinearSchedule
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import WeightBytes


class Policy(StrEnum):
    """A way to choose the layers that each token of a reply runs."""

    D3 = "d3"
    UNIFIED = "unified"
    SKIPDECODE = "skipdecode"
    EARLY_EXIT = "early-exit"
    STATIC = "static"

    @property
    def in_words(self) -> str:
        return {
            Policy.D3: "D³",
            Policy.UNIFIED: "Unified Layer Skipping",
            Policy.SKIPDECODE: "SkipDecode",
            Policy.EARLY_EXIT: "early exit",
            Policy.STATIC: "constant depth",
        }[self]


def unified(weight_bytes: WeightBytes, kept: int) -> DepthSchedule:
    """Unified Layer Skipping: the same evenly spread layers for all tokens.

    Liu et al., arXiv 2404.06954: the target ratio alone says how many layers are kept, the first
    and the last one among them, and the others are skipped "in a balanced manner". Of ``L`` layers,
    number ``i (L - 1) / (K - 1)``, rounded half up, is kept for ``i = 0 .. K - 1``.

    The authors' code keeps every n-th layer, ``n = floor(L / (K - 1))``, until there are K. That is
    meant for ratios of 2 and more: as soon as more than half of the layers are kept, n is 1, and it
    skips one block of layers before the last. So n is not rounded here.

    Args:
        kept: ``K``, at least 2 and at most ``L``.
    """
    last, gaps = len(weight_bytes.layers) - 1, kept - 1
    runs = {(2 * i * last + gaps) // (2 * gaps) for i in range(kept)}
    return static_schedule(weight_bytes, [f"{n}" for n in range(last + 1) if n not in runs])


def early_exit(weight_bytes: WeightBytes, kept: int) -> DepthSchedule:
    """Early exit at a fixed layer: every token runs the first layers, then the final norm.

    Args:
        kept: how many layers run, at least 1.
    """
    num_layers = len(weight_bytes.layers)
    return static_schedule(weight_bytes, [f"{n}" for n in reversed(range(kept, num_layers))])


def skipdecode(num_layers: int, highest: int, lowest: int, new_tokens: int) -> LinearSchedule:
    """SkipDecode: depth falls linearly with the position, and the bottom layers are skipped.

    Del Corro et al., arXiv 2307.02628: all tokens at one position of a batch run equally many
    layers, a number that falls linearly from a maximum to a minimum and never grows. Instead of
    leaving at the end, a token bypasses the lower layers and runs the upper ones; the first layer,
    a warm-up, always runs. So token ``t`` runs layer 0 and the top ``depth(t) - 1`` layers, where

        ``depth(t) = floor(highest - (highest - lowest) (t - 1) / (new_tokens - 2))``

    for the decode steps ``t = 1 .. new_tokens - 1``. A fraction of a layer is skipped, as in D³.
    The paper's models were fine-tuned for their tasks; here nothing is trained.

    Args:
        highest, lowest: the bounds, ``2 <= lowest <= highest <= num_layers``.
        new_tokens: the longest reply, whose last token runs `lowest` layers.
    """
    dropped = num_layers - lowest
    return LinearSchedule(
        num_layers,
        core_first=min(1, num_layers),
        core_last=num_layers - 1 - dropped,
        skip_order=tuple(f"{n}" for n in range(1, 1 + dropped)),
        highest=float(highest),
        until=max(1, new_tokens - 1),
    )


def first_units(order: Schedule, count: int, start: int = 0, pace: int = 1) -> Schedule:
    """Another schedule over the first units of an order.

    Args:
        count: how many of them it drops at most. Where prompts order units of different weights,
            it drops as much weight as the first ones in the model's order have, not as many units.
        start: tokens at full depth before the decay begins.
        pace: the last of several units goes so many tokens after `start`; the first one always goes
            after one. ``start=0, pace=1`` is a constant depth from token 1 on.
    """
    layers, weights = order.num_layers, order.weights
    if isinstance(order, PromptSchedule) and order.kind != "layer":
        lost = sum(weights[:count])
        # Slightly less than all, against rounding; no unit weighs so little.
        alpha = (1 - (lost - 1e-4) / layers) ** (1 / pace)
        least = max(0.0, layers - lost)
        return replace(order, alpha=alpha, start=start, min_depth=least)
    # Slightly below the alpha at which the last unit goes, against rounding.
    alpha = (1 - (sum(weights[: count - 1]) + 1e-4) / layers) ** (1 / pace)
    if isinstance(order, PromptSchedule):
        return replace(order, alpha=alpha, start=start, max_dropped=count)
    units, weight = order.skip_order[:count], order.weights[:count]
    return replace(order, alpha=alpha, start=start, skip_order=units, weights=weight)


def byte_ratio_of(schedule: Schedule, weight_bytes: WeightBytes, lengths: Sequence[int]) -> float:
    """The byte ratio of replies of these lengths together; 1 without a decode step.

    If prompts decide the order, it is about that: exact for layers of equal bytes.
    """
    read_by = weight_bytes.read_by_dropped(schedule.units[: schedule.max_dropped])
    steps = [read_by[schedule.num_dropped(t)] for t in range(1, max(lengths))]
    upto = [0, *accumulate(steps)]  # bytes of the first decode steps
    read = sum(upto[max(0, length - 1)] for length in lengths)
    count = sum(max(0, length - 1) for length in lengths)
    return weight_bytes.ratio(count, read) or 1.0


def schedules_of(
    policy: Policy, order: Schedule, weight_bytes: WeightBytes, lengths: Sequence[int]
) -> Iterator[Schedule]:
    """Every schedule of a policy that drops something, from the least bytes saved to the most.

    SkipDecode begins at all layers and lowers the minimum down to two; then it lowers the maximum.
    D³ decays from token 1 on, and reaches its minimum depth in the middle of a mean reply.

    Args:
        order: whose units D³ and the constant depth drop.
        lengths: of the replies, in tokens.
    """
    layers, longest = len(weight_bytes.layers), max(lengths)
    match policy:
        case Policy.UNIFIED:
            yield from (unified(weight_bytes, kept) for kept in range(layers - 1, 1, -1))
        case Policy.EARLY_EXIT:
            yield from (early_exit(weight_bytes, kept) for kept in range(layers - 1, 0, -1))
        case Policy.SKIPDECODE:
            lowest = min(2, layers)
            bounds = [(layers, low) for low in range(layers - 1, lowest - 1, -1)]
            bounds += [(high, lowest) for high in range(layers - 1, lowest - 1, -1)]
            yield from (skipdecode(layers, high, low, longest) for high, low in bounds)
        case Policy.STATIC:
            yield from (first_units(order, n) for n in range(1, order.max_dropped + 1))
        case Policy.D3:
            pace = _pace(lengths)
            yield from (first_units(order, n, 0, pace) for n in range(1, order.max_dropped + 1))


def at_byte_ratio(
    policy: Policy,
    order: Schedule,
    weight_bytes: WeightBytes,
    lengths: Sequence[int],
    ratio: float,
) -> Schedule | None:
    """The schedule of a policy that comes nearest to a byte ratio in replies of these lengths.

    The byte ratios of layers that go for all tokens at once lie apart, by about one layer.

    Args:
        order, lengths: as for `schedules_of`.

    Returns:
        None if the policy has no schedule that drops something: in a model of one or two layers.
    """
    found = schedules_of(policy, order, weight_bytes, lengths)
    nearest = _nearest(found, weight_bytes, lengths, ratio)
    if policy is Policy.D3 and nearest is not None:
        # Between two numbers of units, the pace decides.
        reached = nearest.alpha ** _pace(lengths)
        paces = range(1, max(2, max(lengths) - 1))
        finer = (replace(nearest, alpha=reached ** (1 / pace)) for pace in paces)
        return _nearest(finer, weight_bytes, lengths, ratio)
    return nearest


def _pace(lengths: Sequence[int]) -> int:
    """The token at which D³ reaches its minimum depth: the middle of a mean reply."""
    return max(1, sum(lengths) // len(lengths) // 2)


def _nearest(
    schedules: Iterable[Schedule], weight_bytes: WeightBytes, lengths: Sequence[int], ratio: float
) -> Schedule | None:
    return min(
        schedules,
        key=lambda one: abs(byte_ratio_of(one, weight_bytes, lengths) - ratio),
        default=None,
    )
