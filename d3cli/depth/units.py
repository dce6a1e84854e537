"""What can be dropped: whole layers and sublayers, their names, weights and bytes. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from d3cli.base.errors import ScheduleError

Part = Literal["attn", "mlp"]


class Unit(NamedTuple):
    """One thing that can be dropped: a whole layer (`part` is None) or one sublayer of it."""

    layer: int
    part: Part | None


@lru_cache(maxsize=4096)
def parse_unit(name: str) -> Unit:
    """Reads ``"12"``, ``"12.attn"`` or ``"12.mlp"``.

    Raises:
        ScheduleError: the name has another form.
    """
    layer, dot, part = name.partition(".")
    if not (layer.isascii() and layer.isdigit()) or (dot and part not in ("attn", "mlp")):
        raise ScheduleError(
            f'"{name}" is not a unit of a skip order', 'write "12", "12.attn" or "12.mlp"'
        )
    return Unit(int(layer), part if dot else None)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Bytes of one layer's weights as stored: its attention, its MLP and the rest (norms)."""

    attn: int
    mlp: int
    other: int = 0

    @property
    def total(self) -> int:
        return self.attn + self.mlp + self.other


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of weights that a decode step reads: each layer's, and the fixed rest.

    `fixed` is read at every depth: the LM head and the final norm. The KV cache is left out.
    """

    layers: tuple[LayerBytes, ...]
    fixed: int

    @property
    def total(self) -> int:
        return self.fixed + sum(layer.total for layer in self.layers)

    def of(self, unit_name: str) -> int:
        """Bytes that dropping this unit saves in one step."""
        layer, part = parse_unit(unit_name)
        here = self.layers[layer]
        return here.total if part is None else getattr(here, part)

    def read(self, dropped: Iterable[str]) -> int:
        """Bytes that one step reads with these units dropped."""
        return self.total - sum(map(self.of, dropped))

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
        layer, part = parse_unit(unit_name)
        here = self.layers[layer]
        return 1.0 if part is None else getattr(here, part) / (here.attn + here.mlp)


UnitKind = Literal["layer", "sublayer"]
