"""The depth schedule that the depth options mean for one model. No torch."""

import math
from typing import Literal, get_args

from d3cli.base.errors import ScheduleError, Setting
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule, check_alpha, check_counts
from d3cli.depth.units import UnitChoice, UnitKind, WeightBytes, parse_unit


def resolve_schedule(
    weight_bytes: WeightBytes,
    alpha: float | Literal["auto", "off"] = "auto",
    *,
    start: int | None = None,
    core_first: int | None = None,
    core_last: int | None = None,
    units: UnitChoice = "auto",
    stored: Schedule | None = None,
) -> Schedule:
    """The schedule that the depth options mean for one model.

    Args:
        weight_bytes: the model's weights.
        alpha: a decay; "auto" for the stored schedule or else full depth; "off" for full depth.
        start, core_first, core_last: override their fields; core sizes filter the skip order.
        units: what a decay may drop if no order is stored: whole layers, sublayers or low planes;
            "auto" is low planes if the weights are nested, else whole layers. Each prompt then
            decides the order. Of layers and sublayers, each end keeps ``ceil(L / 4)`` core layers.
        stored: the model's own schedule, calibrated or shipped with it, if there is one. One
            that is full depth has no order, so an explicit alpha takes the prompt's.

    Raises:
        ScheduleError: the options do not fit the model.
    """
    num_layers = len(weight_bytes.layers)
    counts = {"start": start, "core_first": core_first, "core_last": core_last}
    check_counts(**{name: count for name, count in counts.items() if count is not None})
    if units not in get_args(UnitChoice):
        raise ScheduleError(
            (Setting("units"), f" is {units!r}"), 'use "layer", "sublayer", "plane" or "auto"'
        )
    if alpha == "off":
        return DepthSchedule.full(num_layers)
    decay = None if alpha == "auto" else alpha
    if decay is not None:
        check_alpha(decay, 'use a number in (0, 1], "auto" or "off"')
    stored = order_for(alpha, stored)
    if stored is None:
        if decay is None:
            return DepthSchedule(num_layers, 1.0, start or 0, core_first or 0, core_last or 0)
        return _by_influence(weight_bytes, decay, start or 0, core_first, core_last, units)
    if stored.num_layers != num_layers:
        raise ScheduleError(
            f"the stored schedule is for {stored.num_layers} layers, the model has {num_layers}"
        )
    return _changed(stored, decay, start, core_first, core_last)


def order_for(alpha: float | str, stored: Schedule | None) -> Schedule | None:
    """The stored schedule; None if an alpha is to change one that is full depth and has no order.

    A calibration stores full depth where fewer bits, but no dropped unit, stayed within the target.
    """
    has_no_order = stored is not None and not stored.units
    return None if has_no_order and not isinstance(alpha, str) else stored


def _changed(
    stored: Schedule,
    alpha: float | None,
    start: int | None,
    core_first: int | None,
    core_last: int | None,
) -> Schedule:
    """A stored schedule with other settings; core sizes filter its units."""
    first = stored.core_first if core_first is None else core_first
    last = stored.core_last if core_last is None else core_last
    kept = [
        (name, weight)
        for name, weight in zip(stored.units, stored.weights, strict=True)
        if parse_unit(name).low or first <= parse_unit(name).layer < stored.num_layers - last
    ]
    names, weights = tuple(name for name, _ in kept), tuple(weight for _, weight in kept)
    decay = stored.alpha if alpha is None else alpha
    begin = stored.start if start is None else start
    if isinstance(stored, PromptSchedule):
        most = min(stored.max_dropped, len(names))
        return PromptSchedule(stored.num_layers, decay, begin, first, last, names, weights, most)
    return DepthSchedule(stored.num_layers, decay, begin, first, last, names, weights)


def _by_influence(
    weight_bytes: WeightBytes,
    alpha: float,
    start: int,
    core_first: int | None,
    core_last: int | None,
    units: UnitChoice,
) -> Schedule:
    """A schedule in the order of the prompt; at full depth if nothing can be dropped."""
    num_layers = len(weight_bytes.layers)
    kind: UnitKind = ("plane" if weight_bytes.is_nested else "layer") if units == "auto" else units
    if kind == "plane" and alpha < 1 and not weight_bytes.is_nested:
        raise ScheduleError(
            (
                *(Setting("units", "plane"), " drops the low planes of nested weights, and this "),
                "model is loaded without any",
            ),
            ("load it with ", Setting("quantization", "nested")),
        )
    # The low planes of core layers may go as well.
    quarter = 0 if kind == "plane" else math.ceil(num_layers / 4)
    first = min(quarter, num_layers) if core_first is None else core_first
    last = min(quarter, num_layers - min(first, num_layers)) if core_last is None else core_last
    flex = tuple(
        name
        for name in weight_bytes.unit_names(kind)
        if kind == "plane" or first <= parse_unit(name).layer < num_layers - last
    )
    weights = weight_bytes.weights(flex)
    schedule = PromptSchedule(num_layers, alpha, start, first, last, flex, weights)
    return schedule.without_order() if alpha == 1 or not flex else schedule
