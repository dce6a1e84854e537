"""In which order to drop units, measured on a model: by influence, or greedily by loss per byte.

Knows how units rank; which of the orders' schedules is worth having is the search's affair.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.clock import OutOfTime
from d3cli.calibrate.evaluator import Evaluator
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import UnitKind
from d3cli.model.model import LoadedModel

# Of the units left, each round tries those that looked best the last time, and those of the least
# influence: losses change little from one drop to the next, so one far down is not about to lead.
PREVIOUS_BEST, LEAST_INFLUENCE = 4, 2


def units_of(model: LoadedModel, kind: UnitKind) -> list[str]:
    """All units but those of the first and the last layer, which D³ always keeps."""
    inner = range(1, model.num_layers - 1)
    if kind == "layer":
        return [str(layer) for layer in inner]
    return [f"{layer}.{part}" for layer in inner for part in ("attn", "mlp")]


@dataclass(slots=True)
class GreedyOrder:
    """Drops, again and again, the unit whose loss per byte saved is least.

    A few documents cannot tell units apart that do little. So of those that are within two standard
    errors of the best one, the unit of the least influence per byte goes.

    Iterate it: each item is a static schedule just tried. It may be left at any time; `order`
    holds the units chosen so far.

    Args:
        evaluator: scores static schedules on its first `documents`.
        ranking: all units by influence per byte, the least first.
        most_lost: stops where a unit's drop takes the loss beyond so many nats per token.

    Attributes:
        order: the skip order so far.
        cut: whether time ended it.
    """

    model: LoadedModel
    evaluator: Evaluator
    documents: int
    ranking: Sequence[str]
    most_lost: float
    order: list[str] = field(default_factory=list)
    cut: bool = False

    def __iter__(self) -> Iterator[DepthSchedule]:
        left = list(self.ranking)
        looked: dict[str, float] = {}  # nats lost per byte saved, when last tried
        before: NDArray[np.float64] = np.zeros(self.documents)
        while left:
            # All that is tried in one round agrees until the layer where it drops one unit more.
            so_far = static_schedule(self.model.weight_bytes, self.order)
            self.evaluator.remember(so_far, range(self.model.num_layers - 1))
            rates: dict[str, NDArray[np.float64]] = {}
            sums: dict[str, NDArray[np.float64]] = {}
            for unit in self._entrants(left, looked):
                schedule = static_schedule(self.model.weight_bytes, [*self.order, unit])
                try:
                    losses = self.evaluator.losses(schedule, self.documents)
                except OutOfTime:
                    self.cut = True
                    return
                yield schedule
                sums[unit] = np.array([loss.sum() for loss in losses])
                rates[unit] = (sums[unit] - before) / self.model.weight_bytes.of(unit)
                looked[unit] = float(rates[unit].sum())
            chosen = next(unit for unit in left if unit in rates and _near_best(unit, rates))
            tokens = sum(len(d.response_ids) for d in self.evaluator.documents[: self.documents])
            if sums[chosen].sum() / tokens > self.most_lost:
                return
            self.order.append(chosen)
            left.remove(chosen)
            before = sums[chosen]

    @staticmethod
    def _entrants(left: Sequence[str], looked: Mapping[str, float]) -> list[str]:
        if not looked:
            return list(left)
        best = sorted(left, key=looked.__getitem__)[:PREVIOUS_BEST]
        return list(dict.fromkeys([*best, *left[:LEAST_INFLUENCE]]))


def _near_best(unit: str, rates: Mapping[str, NDArray[np.float64]]) -> bool:
    """Whether a unit's loss per byte is within two standard errors of the least."""
    best = min(rates, key=lambda other: float(rates[other].sum()))
    gap = rates[unit] - rates[best]  # one number a document
    return bool(gap.sum() <= 2 * math.sqrt(len(gap)) * gap.std(ddof=1))
