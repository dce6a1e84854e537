"""An order over low planes, sublayers and layers of nested weights, by what each loses alone.

A greedy order would score every unit again after each drop. Low planes lose little, and what they
lose nearly adds up, so each is scored once. Ranks units only; knows nothing of schedules.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.order import sum_by_document, units_of, upper_end
from d3cli.calibrate.unit_order import SearchKind
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import Unit, UnitKind, WeightBytes, parse_unit
from d3cli.model.model import LoadedModel

# Of coarse units, so many are scored: those with the least influence per byte.
COARSE: Mapping[UnitKind, int] = {"sublayer": 12, "layer": 6}
# Of an order that begins with low planes, about so many prefixes are scored.
SCORED_PREFIXES = 12


def units_of_mix(model: LoadedModel) -> list[str]:
    """All units that a mixed order may name."""
    kinds: list[UnitKind] = ["plane", *COARSE]
    return [unit for kind in kinds for unit in units_of(model, kind)]


def count_units(model: LoadedModel, kind: SearchKind) -> int:
    """About how many units of a kind a search looks at."""
    if kind != "mixed":
        return len(units_of(model, kind))
    return len(units_of(model, "plane")) + sum(COARSE.values())


def worth_scoring(ranking: Sequence[str]) -> list[str]:
    """All low planes of a ranking, and its first coarse units."""
    left = dict(COARSE)
    found = []
    for name in ranking:
        kind = parse_unit(name).kind
        if kind == "plane" or left[kind]:
            found.append(name)
            left[kind] = left.get(kind, 1) - 1
    return found


@dataclass(slots=True)
class OrderOfSingles:
    """Scores each unit alone, and sorts them by their loss per byte.

    Coarse units count with what they lose and save beyond their low planes, since those come first.
    As in a greedy order, the upper end of what a unit may lose decides.

    Iterate it: each item is the static schedule just tried. You may stop at any time. Iteration
    raises OutOfTime when the evaluator's clock runs out; `order` then leaves out the other units.

    Args:
        evaluator: scores static schedules on its first `documents`.
        ranking: the units to score, by influence per byte, the lowest first.
    """

    weight_bytes: WeightBytes
    evaluator: Evaluator
    documents: int
    ranking: Sequence[str]
    _losses: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[DepthSchedule]:
        full = DepthSchedule.full(len(self.weight_bytes.layers))
        self.evaluator.remember(full, range(len(self.weight_bytes.layers) - 1))
        at_full = sum_by_document(self.evaluator.full_losses(self.documents))
        for name in self.ranking:
            schedule = static_schedule(self.weight_bytes, [name])
            losses = self.evaluator.losses(schedule, self.documents)
            self._losses[name] = sum_by_document(losses) - at_full
            yield schedule

    @property
    def order(self) -> list[str]:
        """The units that were scored, the cheapest first."""
        return in_legal_order(sorted(self._losses, key=lambda name: upper_end(self._rate(name))))

    def _rate(self, name: str) -> NDArray[np.float64]:
        """What each document loses per byte by this unit, without its low planes."""
        lows = [low.name for low in parse_unit(name).low_planes if low.name in self._losses]
        loss = self._losses[name] - sum(self._losses[low] for low in lows)
        rate: NDArray[np.float64] = loss / self.weight_bytes.of(name, lows)
        return rate


def in_legal_order(names: Sequence[str]) -> list[str]:
    """The names without those that can no longer be dropped where they stand."""
    gone: set[Unit] = set()
    found: list[str] = []
    for name in names:
        unit = parse_unit(name)
        if not gone.intersection(unit.barred_by):
            gone.add(unit)
            found.append(name)
    return found
