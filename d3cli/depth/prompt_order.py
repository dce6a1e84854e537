"""Depth schedules whose skip order comes from the prompt. No torch.

A model without a calibration has no order of its own. Its prompt's prefill runs at full depth
anyway, and tells how much each unit changes the residual stream: the unit's *influence*. The units
with the least influence for their weight are dropped first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import UnitKind, parse_unit

# Fewer positions than this say too little about the units.
MIN_POSITIONS = 16


class _Computed:
    """Holds what follows from a schedule's fields, so that it is no field itself.

    Attributes:
        _in_model_order: the schedule that drops the units in the model's order.
    """

    __slots__ = ("_in_model_order",)
    _in_model_order: DepthSchedule


@dataclass(frozen=True, slots=True)
class PromptSchedule(_Computed):
    """A depth schedule without its skip order, which each prompt's prefill decides.

    The fields are those of `DepthSchedule`, except:

    Attributes:
        units: the units that may be dropped, in the model's order; all of one kind.
        weights: the weight of each of `units`, in layers; may be left out for whole layers.

    Raises:
        ScheduleError: as for `DepthSchedule`.
    """

    num_layers: int
    alpha: float
    start: int = 0
    core_first: int = 0
    core_last: int = 0
    units: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        in_model_order = DepthSchedule(
            self.num_layers,
            self.alpha,
            self.start,
            self.core_first,
            self.core_last,
            self.units,
            self.weights,
        )
        object.__setattr__(self, "weights", in_model_order.weights)
        object.__setattr__(self, "_in_model_order", in_model_order)

    @property
    def kind(self) -> UnitKind:
        """Whether the units are whole layers or sublayers."""
        whole = all(parse_unit(name).part is None for name in self.units)
        return "layer" if whole else "sublayer"

    @property
    def floor(self) -> float:
        """The minimum depth: what remains when all `units` are dropped, in any order."""
        return self._in_model_order.floor

    def depth(self, t: int) -> float:
        """About the layers that token `t` will use: exact for whole layers, which weigh alike."""
        return self._in_model_order.depth(t)

    def ordered(self, influence: Mapping[str, float]) -> DepthSchedule:
        """The schedule that drops the units with the least influence per weight first.

        Equal units are dropped in the order of `units`, so the same influence always leads to the
        same schedule.

        Args:
            influence: of each unit; those of other units are ignored.
        """
        weights = dict(zip(self.units, self.weights, strict=True))
        order = sorted(self.units, key=lambda unit: influence[unit] / weights[unit])
        return self._in_order(tuple(order))

    def without_order(self) -> DepthSchedule:
        """Full depth with the same settings: what runs if there is no order."""
        return self._in_order(())

    def in_words(self) -> str:
        """What it does: "alpha 0.97 from token 8, down to 9 of 16 layers"."""
        return self._in_model_order.in_words()

    def _in_order(self, order: tuple[str, ...]) -> DepthSchedule:
        weights = dict(zip(self.units, self.weights, strict=True))
        return DepthSchedule(
            self.num_layers,
            self.alpha,
            self.start,
            self.core_first,
            self.core_last,
            order,
            tuple(weights[unit] for unit in order),
        )


# What the depth options ask for: a schedule, or one that each prompt completes.
Schedule = DepthSchedule | PromptSchedule


def units_to_measure(schedule: Schedule | None) -> UnitKind | None:
    """The kind of units whose influence a schedule needs; None if its order is fixed."""
    return schedule.kind if isinstance(schedule, PromptSchedule) else None
