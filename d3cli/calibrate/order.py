"""The greedy order in which to drop units: by the loss per byte that each costs.

Ranks units only; `search` finds which schedules over an order are worth having.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.evaluator import Evaluator
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import UnitKind, parse_unit
from d3cli.model.model import LoadedModel
from d3cli.scoring.intervals import Losses

# Each round tries the units that looked best in the previous rounds, and those with the least
# influence. Losses change little from one drop to the next, so no other unit is likely to be best.
PREVIOUS_BEST, LEAST_INFLUENCE = 4, 2


def units_of(model: LoadedModel, kind: UnitKind) -> list[str]:
    """All units except those of the first and the last layer, which lose only low planes."""
    found = model.weight_bytes.unit_names(kind)
    inner = range(1, model.num_layers - 1)
    return [name for name in found if kind == "plane" or parse_unit(name).layer in inner]


@dataclass(slots=True)
class GreedyOrder:
    """Repeatedly drops the unit that loses least per byte saved.

    A few documents measure a loss only roughly. So units are compared by the upper end of what each
    may lose, one standard error above its mean: a unit that seems to cost little by chance does
    not win against one that certainly does.

    Iterate it: each item is the static schedule just tried. You may stop at any time; `order` holds
    the units chosen so far. Iteration raises OutOfTime when the evaluator's clock runs out.

    Args:
        evaluator: scores static schedules on its first `documents`.
        ranking: all units by influence per byte, the lowest first.
        max_loss: stops before the unit whose drop raises the loss above this, in nats per token.

    Attributes:
        order: the skip order so far.
    """

    model: LoadedModel
    evaluator: Evaluator
    documents: int
    ranking: Sequence[str]
    max_loss: float
    order: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[DepthSchedule]:
        left = list(self.ranking)
        last_rates: dict[str, float] = {}  # nats lost per byte saved, when last tried
        before = sum_by_document(self.evaluator.full_losses(self.documents))
        while left:
            # All schedules of a round agree up to the layer in which they drop one more unit.
            so_far = static_schedule(self.model.weight_bytes, self.order)
            self.evaluator.remember(so_far, range(self.model.num_layers - 1))
            rates: dict[str, NDArray[np.float64]] = {}
            sums: dict[str, NDArray[np.float64]] = {}
            for unit in self._entrants(left, last_rates):
                schedule = static_schedule(self.model.weight_bytes, [*self.order, unit])
                sums[unit] = sum_by_document(self.evaluator.losses(schedule, self.documents))
                yield schedule
                rates[unit] = (sums[unit] - before) / self.model.weight_bytes.of(unit, self.order)
                last_rates[unit] = float(rates[unit].sum())
            chosen = min(rates, key=lambda unit: upper_end(rates[unit]))
            tokens = sum(len(d.response_ids) for d in self.evaluator.documents[: self.documents])
            if sums[chosen].sum() / tokens > self.max_loss:
                return
            self.order.append(chosen)
            left.remove(chosen)
            before = sums[chosen]

    @staticmethod
    def _entrants(left: Sequence[str], last_rates: Mapping[str, float]) -> list[str]:
        if not last_rates:
            return list(left)
        best = sorted(left, key=last_rates.__getitem__)[:PREVIOUS_BEST]
        return list(dict.fromkeys([*best, *left[:LEAST_INFLUENCE]]))


def sum_by_document(losses: Losses) -> NDArray[np.float64]:
    """What each document loses, in nats."""
    return np.array([loss.sum() for loss in losses])


def upper_end(rates: NDArray[np.float64]) -> float:
    """The sum of the documents' losses per byte, plus one standard error."""
    return float(rates.sum() + math.sqrt(len(rates)) * rates.std(ddof=1))
