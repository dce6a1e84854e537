"""Depth schedules whose skip order comes from the prompt. No torch.

A model without a calibration has no order of its own. Its prompt's prefill runs at full depth
anyway, and tells how much each unit changes the residual stream: the unit's *influence*. The units
with the least influence for their weight are dropped first.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from typing import Any

from d3cli.base.errors import ScheduleError
from d3cli.base.json_rows import convert_json
from d3cli.depth.linear_schedule import LinearSchedule
from d3cli.depth.schedule import TOLERANCE, DepthSchedule
from d3cli.depth.units import UnitKind, parse_unit, units_in_words

# Fewer positions than this say too little about the units.
MIN_POSITIONS = 16


class _Computed:
    """Holds what follows from a schedule's fields, so that it is no field itself.

    Attributes:
        _in_model_order: the schedule that drops as many of the units as allowed, the first ones.
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
        max_dropped: how many of the units may be dropped at once; may be left out for all of them.
        min_depth: in layers; a prompt's order ends before the unit that would leave less. It says
            what remains where units differ in weight and nobody knows which come first.

    Raises:
        ScheduleError: as for `DepthSchedule`, or `max_dropped` is not a number of units,
            `min_depth` is not a number of layers, or the units are of several kinds.
    """

    num_layers: int
    alpha: float
    start: int = 0
    core_first: int = 0
    core_last: int = 0
    units: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    max_dropped: int = -1
    min_depth: float = 0.0

    def __post_init__(self) -> None:
        checked = DepthSchedule(
            self.num_layers,
            self.alpha,
            self.start,
            self.core_first,
            self.core_last,
            self.units,
            self.weights,
        )
        object.__setattr__(self, "weights", checked.weights)
        if self.max_dropped == -1:
            object.__setattr__(self, "max_dropped", len(self.units))
        if not 0 <= self.max_dropped <= len(self.units):
            raise ScheduleError(
                f"at most {self.max_dropped} units may be dropped, of {len(self.units)}"
            )
        if not 0.0 <= self.min_depth <= self.num_layers:
            raise ScheduleError(
                f"the minimum depth is {self.min_depth:g} of {self.num_layers} layers"
            )
        if len({parse_unit(name).kind for name in self.units}) > 1:
            raise ScheduleError("the units that a prompt orders are of several kinds")
        in_model_order = self._in_order(self.units[: self.max_dropped])
        object.__setattr__(self, "_in_model_order", in_model_order)

    @property
    def kind(self) -> UnitKind:
        """The kind of the units."""
        return parse_unit(self.units[0]).kind if self.units else "layer"

    @property
    def floor(self) -> float:
        """The minimum depth: what remains when as many units as allowed are dropped.

        If these are some of the parts of layers, it is about that: the prompt decides which.
        """
        return self._in_model_order.floor

    def depth(self, t: int) -> float:
        """About the layers that token `t` will use: exact for whole layers, which weigh alike."""
        return self._in_model_order.depth(t)

    def num_dropped(self, t: int) -> int:
        """About how many units token `t` will drop: exact for whole layers."""
        return self._in_model_order.num_dropped(t)

    def ordered(self, influence: Mapping[str, float]) -> DepthSchedule:
        """The schedule that drops the units with the least influence per weight first.

        Equal units are dropped in the order of `units`, so the same influence always leads to the
        same schedule.

        Args:
            influence: of each unit; those of other units are ignored.
        """
        weights = dict(zip(self.units, self.weights, strict=True))
        order = sorted(self.units, key=lambda unit: influence[unit] / weights[unit])
        return self._in_order(tuple(order[: self.max_dropped]))

    def in_order(self, order: Sequence[str]) -> DepthSchedule:
        """The schedule in an order that `ordered` once chose; at full depth if that is empty.

        Raises:
            ScheduleError: the order has too many units, or others than `units`.
        """
        if len(order) > self.max_dropped or not set(order) <= set(self.units):
            raise ScheduleError("the skip order does not fit the schedule of its prompt")
        return self._in_order(tuple(order))

    def without_order(self) -> DepthSchedule:
        """Full depth with the same settings: what runs if there is no order."""
        return self._in_order(())

    def to_json(self) -> dict[str, Any]:
        """A plain object, in the same form wherever such a schedule is written."""
        lists = {"units": list(self.units), "weights": list(self.weights)}
        data = asdict(self) | lists | {"order": "prompt"}
        if not self.min_depth:  # only rivals of D³ have one
            del data["min_depth"]
        return data

    def in_words(self) -> str:
        """What it does: "alpha 0.97 from token 8, down to 9 of 16 layers"."""
        return self._in_model_order.in_words()

    def _in_order(self, order: tuple[str, ...]) -> DepthSchedule:
        weights = dict(zip(self.units, self.weights, strict=True))
        if self.min_depth:
            lost = list(accumulate(weights[unit] for unit in order))
            order = order[: bisect_right(lost, self.num_layers - self.min_depth + TOLERANCE)]
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


def order_in_words(schedule: Schedule) -> str:
    """The units in their skip order, or how many units each prompt's own order drops."""
    if isinstance(schedule, DepthSchedule):
        return " ".join(schedule.skip_order)
    units = f"{len(schedule.units)} {units_in_words(schedule.kind)}"
    return f"each prompt's own, of {units}: at most {schedule.max_dropped} are dropped"


def schedule_from_json(data: Mapping[str, Any]) -> Schedule:
    """Reads what `to_json` of either kind wrote. Unknown fields are ignored.

    Raises:
        ScheduleError: a field is missing, has the wrong type or is out of range.
    """
    order, fall = data.get("order", "fixed"), data.get("fall", "by alpha")
    damaged = "the stored depth schedule is damaged"
    if fall not in ("by alpha", "linear"):
        raise ScheduleError(f"{damaged}: its depth falls {fall!r:.40}")
    if order == "fixed":
        kind = LinearSchedule if fall == "linear" else DepthSchedule
        return kind.from_json(data)
    if order != "prompt":
        raise ScheduleError(f"{damaged}: its order is {order!r:.40}")
    if missing := {field.name for field in fields(PromptSchedule)} - {"min_depth"} - data.keys():
        raise ScheduleError(f"{damaged}: it has no {min(missing)}")
    try:
        return convert_json(data, PromptSchedule)
    except ValueError as error:
        raise ScheduleError(f"{damaged}: {error}") from error


def units_to_measure(schedule: Schedule | None) -> UnitKind | None:
    """The kind of units whose influence a schedule needs; None if its order is fixed."""
    return schedule.kind if isinstance(schedule, PromptSchedule) else None
