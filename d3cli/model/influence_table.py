"""What is known of each unit's influence: over a sequence, and over all that a model has read.

Knows nothing of how influence is measured, which is `influence`, or what it is for.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from d3cli.base.errors import GenerationError, Setting
from d3cli.depth.prompt_order import MIN_POSITIONS
from d3cli.depth.units import UnitKind, unit_names
from d3cli.model.gate import LayerGate
from d3cli.model.influence import STRIDE, InfluenceMeter

# Short prompts whose influence is remembered.
SHORT_PROMPTS = 64


class EarlierInfluence(NamedTuple):
    """Mean influence of each unit over what was read earlier, and over how many positions."""

    mean: Mapping[str, float]
    positions: int


class InfluenceHistory:
    """Influence over everything that a model has read in this process while it was measured.

    It serves prompts that are too short to order the units themselves.
    """

    def __init__(self) -> None:
        self._sums: dict[UnitKind, Tensor] = {}  # [units] float64
        self._measured: dict[UnitKind, int] = {}  # rows in the sum
        self._positions: dict[UnitKind, int] = {}  # and the positions that they stand for
        self._answers: dict[tuple[UnitKind, tuple[int, ...]], EarlierInfluence | None] = {}

    def forget(self) -> None:
        """Forgets everything, so that a reply depends on nothing that was read before."""
        for known in (self._sums, self._measured, self._positions, self._answers):
            known.clear()

    def add(self, kind: UnitKind, rows: Tensor, positions: int) -> None:
        """Adds what was measured ``[M, units]`` of some new positions.

        Leaves all of them out if a value is not finite.
        """
        sums = rows.sum(dim=0, dtype=torch.float64)
        if not math.isfinite(sums.sum()):
            return
        self._sums[kind] = self._sums.get(kind, 0) + sums
        self._measured[kind] = self._measured.get(kind, 0) + len(rows)
        self._positions[kind] = self._positions.get(kind, 0) + positions

    def mean(
        self, units: Sequence[str], kind: UnitKind, prompt_ids: Sequence[int]
    ) -> EarlierInfluence | None:
        """What is known now, for the reply to a short prompt; None if it is too little.

        The same prompt gets the same answer as before, so that its reply can be written again.
        """
        key = (kind, tuple(prompt_ids))
        if key not in self._answers:
            measured, answer = self._measured.get(kind, 0), None
            if min(measured * STRIDE[kind], self._positions.get(kind, 0)) >= MIN_POSITIONS:
                means = dict(zip(units, (self._sums[kind] / measured).tolist(), strict=True))
                answer = EarlierInfluence(means, self._positions[kind])
            self._answers[key] = answer
            if len(self._answers) > SHORT_PROMPTS:
                del self._answers[next(iter(self._answers))]
        return self._answers[key]


class InfluenceTable:
    """The influence of each unit at the first positions of a sequence, on the CPU.

    A position's influence depends only on the tokens up to it. So what is known stays true as long
    as those tokens stay the same, even where the KV cache no longer holds them.

    Args:
        history: gains every position that is written.

    Attributes:
        kind: which units are measured; None before `measure`.
        units: their names, in the order of the columns.
        length: the positions known. Every fourth or eighth of them is measured: see `STRIDE`.
    """

    def __init__(self, num_layers: int, history: InfluenceHistory) -> None:
        self._num_layers, self._history = num_layers, history
        self.kind: UnitKind | None = None
        self.units: tuple[str, ...] = ()
        self.length = 0
        self._rows = torch.empty(0, 0)  # [M, units], of the positions measured

    def measure(self, kind: UnitKind) -> None:
        """Sets which units are measured. What is known of another kind is forgotten."""
        if kind != self.kind:
            self.kind, self.length = kind, 0
            self.units = unit_names(self._num_layers, kind)
            self._rows = torch.empty(0, len(self.units))

    def new_meter(self, gate: LayerGate, position: int) -> InfluenceMeter:
        """Measures the table's units in a pass from `position` on; `write` then takes its rows."""
        assert self.kind is not None
        return InfluenceMeter(gate, self.kind, position)

    def crop(self, length: int) -> None:
        """Forgets the positions from `length` on."""
        self.length = min(self.length, length)

    def write(self, position: int, tokens: int, rows: Tensor) -> None:
        """Adds what a pass over `tokens` tokens measured from `position` on.

        Positions already known stay.

        Args:
            rows: of the positions measured, ``[M, units]``.
        """
        assert self.kind is not None
        assert position <= self.length, "positions before these have not been measured"
        end = position + tokens
        if end <= self.length:
            return
        stride = STRIDE[self.kind]
        known = self.length // stride
        new = rows[known - position // stride :]
        self._rows = torch.cat([self._rows[:known], new])
        self._history.add(self.kind, new, end - self.length)
        self.length = end

    def mean(self, length: int) -> dict[str, float]:
        """Each unit's mean influence over those of the first `length` positions that are measured.

        Raises:
            GenerationError: a value is not finite.
        """
        assert self.kind is not None and length <= self.length
        return mean_influence(self.units, self._rows[: length // STRIDE[self.kind]])


def mean_influence(units: Sequence[str], rows: Tensor) -> dict[str, float]:
    """Each unit's mean influence over positions, of ``rows`` ``[positions, units]``.

    Raises:
        GenerationError: a value is not finite.
    """
    means = dict(zip(units, rows.mean(dim=0, dtype=torch.float64).tolist(), strict=True))
    for unit, mean in means.items():
        if not abs(mean) < float("inf"):
            raise GenerationError(
                f"the states around unit {unit} are not finite, so no order of units can be found",
                (
                    "the weights may be damaged, or the dtype too narrow: try ",
                    Setting("dtype", "float32"),
                ),
            )
    return means
