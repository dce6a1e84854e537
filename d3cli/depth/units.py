"""What can be dropped: layers, sublayers, low planes; their names, weights and bytes. No torch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple, TypeVar

from d3cli.base.errors import ScheduleError

UnitKind = Literal["layer", "sublayer", "plane"]
UnitChoice = Literal["auto", "layer", "sublayer", "plane"]
Amount = TypeVar("Amount", int, float)

LOW = "lo"  # the end of a low plane's name


class Part(StrEnum):
    """A sublayer of a layer."""

    ATTN = "attn"
    MLP = "mlp"


class Unit(NamedTuple):
    """One thing that can be dropped.

    Attributes:
        part: the sublayer; None for the whole layer.
        low: whether it is only the low plane of the sublayer's weights.
    """

    layer: int
    part: Part | None = None
    low: bool = False

    @property
    def name(self) -> str:
        end = f".{LOW}" if self.low else ""
        return f"{self.layer}" if self.part is None else f"{self.layer}.{self.part}{end}"

    @property
    def kind(self) -> UnitKind:
        if self.part is None:
            return "layer"
        return "plane" if self.low else "sublayer"

    @property
    def low_planes(self) -> tuple["Unit", ...]:
        """The low planes in this unit that may be dropped before it; none in a low plane."""
        if self.low:
            return ()
        parts = Part if self.part is None else (self.part,)
        return tuple(Unit(self.layer, part, low=True) for part in parts)

    @property
    def barred_by(self) -> tuple["Unit", ...]:
        """The units after which this one can no longer be dropped, itself included.

        A part is dropped in one form, a layer whole or as sublayers. A low plane goes before the
        sublayer or the layer that it is part of.
        """
        if self.part is None:
            return (self, *(Unit(self.layer, part) for part in Part))
        return (self, Unit(self.layer), *([Unit(self.layer, self.part)] if self.low else []))


def units_in_words(kind: UnitKind, number: int = 2) -> str:
    """Units of a kind in words: "layers", "sublayers", "low planes"; of one: "layer"."""
    one = "low plane" if kind == "plane" else kind
    return one if number == 1 else f"{one}s"


@lru_cache(maxsize=4096)
def parse_unit(name: str) -> Unit:
    """Reads ``"12"``, ``"12.attn"``, ``"12.mlp"``, ``"12.attn.lo"`` or ``"12.mlp.lo"``.

    Raises:
        ScheduleError: the name has another form.
    """
    layer, *rest = name.split(".")
    known = [[], *([part] for part in Part), *([part, LOW] for part in Part)]
    if not (layer.isascii() and layer.isdigit() and len(layer) < 10) or rest not in known:
        raise ScheduleError(
            f'"{name[:60]}" is not a unit of a skip order',
            'write "12", "12.attn", "12.mlp", "12.attn.lo" or "12.mlp.lo"',
        )
    return Unit(int(layer), Part(rest[0]) if rest else None, len(rest) == 2)


def unit_names(num_layers: int, kind: UnitKind) -> tuple[str, ...]:
    """The names of all units of a kind, in the model's order."""
    if kind == "layer":
        return tuple(map(str, range(num_layers)))
    end = f".{LOW}" if kind == "plane" else ""
    return tuple(f"{layer}.{part}{end}" for layer in range(num_layers) for part in Part)


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Bytes of one layer's weights as stored: its attention, its MLP and the rest (norms).

    `attn_low` and `mlp_low` are the low planes among them, 0 if the weights are not nested.
    """

    attn: int
    mlp: int
    other: int = 0
    attn_low: int = 0
    mlp_low: int = 0

    @property
    def total(self) -> int:
        return self.attn + self.mlp + self.other

    def of(self, part: Part | None, *, low: bool = False) -> int:
        """Bytes of one sublayer or its low plane, or of the whole layer if `part` is None."""
        match part:
            case None:
                return self.total
            case Part.ATTN:
                return self.attn_low if low else self.attn
            case Part.MLP:
                return self.mlp_low if low else self.mlp

    def weight(self, part: Part | None, *, low: bool = False) -> float:
        """A part's share of the bytes of attention and MLP; 1 for the whole layer."""
        return 1.0 if part is None else self.of(part, low=low) / (self.attn + self.mlp)


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of weights that a decode step reads: each layer's, and the fixed rest.

    `fixed` is read at every depth: the LM head and the final norm. The KV cache is not included.

    What a unit saves depends on the units dropped before it: without its low plane, dropping a
    sublayer saves only the rest. So units are counted in the order in which they are dropped.

    Attributes:
        layer_weights: the number of weights in all layers that a step reads at full depth, if they
            are nested; else 0.
    """

    layers: tuple[LayerBytes, ...]
    fixed: int
    layer_weights: int = 0

    @property
    def total(self) -> int:
        return self.fixed + sum(layer.total for layer in self.layers)

    @property
    def is_nested(self) -> bool:
        """Whether there are low planes to drop."""
        return any(layer.attn_low or layer.mlp_low for layer in self.layers)

    def has(self, unit_name: str) -> bool:
        """Whether there is such a unit, with at least one byte."""
        unit = parse_unit(unit_name)
        if unit.layer >= len(self.layers):
            return False
        return self.layers[unit.layer].of(unit.part, low=unit.low) > 0

    def unit_names(self, kind: UnitKind) -> tuple[str, ...]:
        """The names of all units of a kind that have weights, in the model's order."""
        return tuple(filter(self.has, unit_names(len(self.layers), kind)))

    def saved(self, order: Iterable[str]) -> list[int]:
        """Bytes that a step saves by dropping each unit of an order, after those before it."""
        return self.marginal(order, lambda unit: self._layer(unit).of(unit.part, low=unit.low))

    def weights(self, order: Iterable[str]) -> tuple[float, ...]:
        """The weight in layers of each unit of an order, after those before it.

        A layer weighs 1 and a part its share of the layer's attention + MLP bytes, both less the
        low planes dropped before.
        """
        layers = self.marginal(
            order, lambda unit: self._layer(unit).weight(unit.part, low=unit.low)
        )
        return tuple(layers)

    def _layer(self, unit: Unit) -> LayerBytes:
        return self.layers[unit.layer]

    @staticmethod
    def marginal(order: Iterable[str], amount: Callable[[Unit], Amount]) -> list[Amount]:
        """Each unit's amount in an order, less those of its low planes that were dropped before."""
        gone: set[Unit] = set()
        found = []
        for unit in map(parse_unit, order):
            own = amount(unit)
            for low in unit.low_planes:
                if low in gone:
                    own -= amount(low)
            found.append(own)
            gone.add(unit)
        return found

    def of(self, unit_name: str, dropped: Iterable[str] = ()) -> int:
        """Bytes that a step saves by dropping this unit after those that are `dropped`."""
        return self.saved([*dropped, unit_name])[-1]

    def read(self, dropped: Iterable[str]) -> int:
        """Bytes that one step reads with these units dropped, in this order."""
        return self.total - sum(self.saved(dropped))

    def read_by_dropped(self, order: Iterable[str]) -> list[int]:
        """Bytes that one step reads with the first ``0 .. len(order)`` units dropped."""
        total = self.total
        return [total - saved for saved in accumulate(self.saved(order), initial=0)]

    def bits(self, read: float) -> float | None:
        """Bits read for each weight of the layers, by steps that read so many bytes on average.

        A dropped weight counts with 0 bits. None if the weights are not nested.
        """
        return 8 * (read - self.fixed) / self.layer_weights if self.layer_weights else None

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
