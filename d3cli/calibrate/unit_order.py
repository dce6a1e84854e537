"""Orders in which units are dropped: one for all prompts, or each prompt's own.

To a search, an order is what the unit at each of its places weighs and saves, and the schedules
over it. Runs nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import numpy as np

from d3cli.calibrate.costs import StepCosts
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule, schedule_of, static_schedule
from d3cli.depth.units import UnitKind, WeightBytes, parse_unit, units_in_words

# What an order is made of; "mixed" is units of several kinds.
SearchKind = UnitKind | Literal["mixed"]


def kind_in_words(kind: SearchKind, *, by_prompt: bool = False) -> str:
    """Units of a kind in words, with where their order comes from."""
    words = "mixed units" if kind == "mixed" else units_in_words(kind)
    return f"{words} by prompt" if by_prompt else words


@dataclass(frozen=True, slots=True)
class UnitOrder:
    """An order of units, as far as it may be dropped.

    Attributes:
        units: in their order; if each prompt has its own, all that may be dropped, in the model's.
        by_prompt: whether each prompt has its own order.
        weights: of the unit at each place, in layers. If each prompt has its own order, these are
            means over documents.
        saved: bytes that a step saves without the first ``0 .. places`` units. Means as well;
            a document whose prompt is too short for an order saves nothing.
        saved_seconds: the same in seconds.
    """

    costs: StepCosts
    kind: SearchKind
    units: tuple[str, ...]
    by_prompt: bool
    weights: tuple[float, ...]
    saved: tuple[float, ...]
    saved_seconds: tuple[float, ...]

    @property
    def weight_bytes(self) -> WeightBytes:
        return self.costs.weight_bytes

    @property
    def places(self) -> int:
        """How many units may be dropped."""
        return len(self.weights)

    def kind_of(self, count: int) -> SearchKind:
        """The kind of the first units: of a mixed order, these may be of one kind."""
        kinds = {parse_unit(name).kind for name in self.units[:count]}
        return kinds.pop() if self.kind == "mixed" and len(kinds) == 1 else self.kind

    def first(self, places: int) -> "UnitOrder":
        """The same order, of which no more than this many units may be dropped."""
        units = self.units if self.by_prompt else self.units[:places]
        return replace(
            self,
            units=units,
            weights=self.weights[:places],
            saved=self.saved[: places + 1],
            saved_seconds=self.saved_seconds[: places + 1],
        )

    def schedule(self, count: int, alpha: float, start: int) -> Schedule:
        """The schedule that drops up to `count` units."""
        if not self.by_prompt:
            return schedule_of(self.weight_bytes, self.units[:count], alpha, start)
        num_layers = len(self.weight_bytes.layers)
        weights = self.weight_bytes.weights(self.units)
        return PromptSchedule(num_layers, alpha, start, 1, 1, self.units, weights, count)

    def static(self, count: int) -> Schedule:
        """A constant depth: drops `count` units from token 1 on."""
        if not self.by_prompt:
            return static_schedule(self.weight_bytes, self.units[:count])
        num_layers = len(self.weight_bytes.layers)
        return self.schedule(count, 1 - (self.before_last(count) + 1e-4) / num_layers, 0)

    def before_last(self, count: int) -> float:
        """What the first ``count - 1`` units weigh at most, in layers."""
        if not self.by_prompt:
            return sum(self.weights[: count - 1])
        heaviest = sorted(self.weight_bytes.weights(self.units), reverse=True)
        return sum(heaviest[: count - 1])


def fixed_order(costs: StepCosts, kind: SearchKind, units: Sequence[str]) -> UnitOrder:
    """One order for all prompts."""
    weights = costs.weight_bytes.weights(units)
    saved = tuple(accumulate(costs.weight_bytes.saved(units), initial=0))
    seconds = tuple(accumulate(costs.saved(units), initial=0.0))
    return UnitOrder(costs, kind, tuple(units), False, weights, saved, seconds)


def prompt_orders(
    costs: StepCosts,
    kind: UnitKind,
    units: Sequence[str],
    orders: Sequence[Sequence[str]],
) -> UnitOrder:
    """Each prompt's own order.

    Args:
        units: all that may be dropped, in the model's order.
        orders: of the documents, all of `units` each; empty where the prompt is too short. At least
            one must not be empty.
    """
    weights = [list(costs.weight_bytes.weights(order)) for order in orders if order]
    nothing = [0.0] * (len(units) + 1)

    def mean(saved: Callable[[Iterable[str]], Iterable[float]]) -> tuple[float, ...]:
        each = [
            list(accumulate(saved(order), initial=0.0)) if order else nothing for order in orders
        ]
        return tuple(np.mean(each, axis=0).tolist())

    return UnitOrder(
        costs,
        kind,
        tuple(units),
        True,
        tuple(np.mean(weights, axis=0).tolist()),
        mean(costs.weight_bytes.saved),
        mean(costs.saved),
    )


def mean_ratios(
    schedules: Sequence[DepthSchedule], new_tokens: int, weight_bytes: WeightBytes
) -> tuple[float, float]:
    """The layer ratio and the byte ratio of replies of `new_tokens`, one under each schedule."""
    if len(set(schedules)) == 1:
        [one] = set(schedules)
        return one.layer_ratio(new_tokens), one.byte_ratio(new_tokens, weight_bytes)
    layers = [1 / one.layer_ratio(new_tokens) for one in schedules]
    nbytes = [1 / one.byte_ratio(new_tokens, weight_bytes) for one in schedules]
    return 1 / float(np.mean(layers)), 1 / float(np.mean(nbytes))
