"""What can be dropped: whole layers and sublayers, their names, weights and bytes. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

from d3cli.base.errors import ScheduleError

UnitKind = Literal["layer", "sublayer"]
UnitChoice = Literal["auto", "layer", "sublayer"]


class Part(StrEnum):
    """A sublayer of a layer."""

    ATTN = "attn"
    MLP = "mlp"


class Unit(NamedTuple):
    """One thing that can be dropped: a whole layer (`part` is None) or one sublayer of it."""

    layer: int
    part: Part | None = None

    @property
    def overlapping(self) -> tuple["Unit", ...]:
        """The units that share weights with this one, itself included."""
        parts = Part if self.part is None else (self.part,)
        return (Unit(self.layer), *(Unit(self.layer, part) for part in parts))


@lru_cache(maxsize=4096)
def parse_unit(name: str) -> Unit:
    """Reads ``"12"``, ``"12.attn"`` or ``"12.mlp"``.

    Raises:
        ScheduleError: the name has another form.
    """
    layer, dot, part = name.partition(".")
    if not (layer.isascii() and layer.isdigit()) or (dot and part not in tuple(Part)):
        raise ScheduleError(
            f'"{name}" is not a unit of a skip order', 'write "12", "12.attn" or "12.mlp"'
        )
    return Unit(int(layer), Part(part) if dot else None)


def unit_names(num_layers: int, kind: UnitKind) -> tuple[str, ...]:
    """The names of all units of a kind, in the model's order."""
    if kind == "layer":
        return tuple(map(str, range(num_layers)))
    return tuple(f"{layer}.{part}" for layer in range(num_layers) for part in Part)


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Bytes of one layer's weights as stored: its attention, its MLP and the rest (norms)."""

    attn: int
    mlp: int
    other: int = 0

    @property
    def total(self) -> int:
        return self.attn + self.mlp + self.other

    def of(self, part: Part | None) -> int:
        """Bytes of one sublayer, or of the whole layer if `part` is None."""
        match part:
            case None:
                return self.total
            case Part.ATTN:
                return self.attn
            case Part.MLP:
                return self.mlp

    def weight(self, part: Part | None) -> float:
        """A sublayer's share of the bytes of attention and MLP; 1 for the whole layer."""
        return 1.0 if part is None else self.of(part) / (self.attn + self.mlp)


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of weights that a decode step reads: each layer's, and the fixed rest.

    `fixed` is read at every depth: the LM head and the final norm. The KV cache is not included.
    """

    layers: tuple[LayerBytes, ...]
    fixed: int

    @property
    def total(self) -> int:
        return self.fixed + sum(layer.total for layer in self.layers)

    def of(self, unit_name: str) -> int:
        """Bytes that a step saves by dropping this unit."""
        unit = parse_unit(unit_name)
        return self.layers[unit.layer].of(unit.part)

    def read(self, dropped: Iterable[str]) -> int:
        """Bytes that one step reads with these units dropped."""
        return self.total - sum(map(self.of, dropped))

    def read_by_dropped(self, order: Iterable[str]) -> list[int]:
        """Bytes that one step reads with the first ``0 .. len(order)`` units dropped."""
        saved = accumulate(map(self.of, order), initial=0)
        return [self.total - one for one in saved]

    def ratio(self, steps: int, read: int, *, repairs: int = 0) -> float | None:
        """The byte ratio: bytes that `steps` read at full depth over the bytes that they did read.

        Args:
            read: bytes read by all steps together.
            repairs: full-depth reads to add to `read`, one for each KV cache repaired later.

        Returns:
            None if there was no step.
        """
        read += repairs * self.total
        return steps * self.total / read if steps and read else None

    def weight(self, unit_name: str) -> float:
        """The unit's weight in layers: 1, or its share of the layer's attention + MLP bytes."""
        unit = parse_unit(unit_name)
        return self.layers[unit.layer].weight(unit.part)
