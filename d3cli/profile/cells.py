"""What each layer did for each token of a reply: the cells of a heat map. No torch."""

from collections.abc import Sequence
from enum import IntEnum

from d3cli.depth.units import Part, Unit, parse_unit
from d3cli.profile.trace import ReplyTrace, TokenTrace, Trace


class Cell(IntEnum):
    """What a layer did for a token, from nothing to everything."""

    SKIPPED = 0
    NO_MLP = 1
    NO_ATTENTION = 2
    NO_LOW_PLANES = 3
    ONE_LOW_PLANE = 4
    RUN = 5

    @property
    def in_words(self) -> str:
        return {
            Cell.SKIPPED: "skipped",
            Cell.NO_MLP: "MLP dropped",
            Cell.NO_ATTENTION: "attention dropped",
            Cell.NO_LOW_PLANES: "without low planes",
            Cell.ONE_LOW_PLANE: "without one low plane",
            Cell.RUN: "run",
        }[self]


def cells(trace: Trace, reply: ReplyTrace, tokens: Sequence[TokenTrace]) -> list[list[Cell | None]]:
    """What each layer did for a reply's tokens, ``[layers][tokens]``.

    None for a token whose dropped units are not recorded.
    """
    layers = trace.model.num_layers
    units = [parse_unit(name) for name in trace.schedule_of(reply).skip_order]
    columns: dict[int | None, list[Cell | None]] = {None: [None] * layers}
    for count in {token.dropped_units for token in tokens} - {None}:
        dropped = set(units[:count])
        columns[count] = [_cell(layer, dropped) for layer in range(layers)]
    each = [columns[token.dropped_units] for token in tokens]
    return [[column[layer] for column in each] for layer in range(layers)]


def kinds_of(trace: Trace) -> list[Cell]:
    """The cells that this model's layers can have."""
    return [
        cell
        for cell in Cell
        if trace.model.weight_bytes.is_nested
        or cell not in (Cell.NO_LOW_PLANES, Cell.ONE_LOW_PLANE)
    ]


def _cell(layer: int, dropped: set[Unit]) -> Cell:
    parts = [part for part in Part if Unit(layer, part) in dropped]
    if Unit(layer) in dropped or len(parts) == len(Part):
        return Cell.SKIPPED
    if parts:
        return Cell.NO_MLP if parts == [Part.MLP] else Cell.NO_ATTENTION
    lows = sum(Unit(layer, part, low=True) in dropped for part in Part)
    return (Cell.RUN, Cell.ONE_LOW_PLANE, Cell.NO_LOW_PLANES)[lows]
