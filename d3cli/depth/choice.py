"""Which schedule runs: the options, else the model's own, else a default. Prints nothing."""

import math
from dataclasses import replace
from typing import Literal

from d3cli.base.errors import ScheduleError
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import parse_unit


def default_schedule(
    num_layers: int,
    alpha: float | None = None,
    start: int | None = None,
    core_first: int | None = None,
    core_last: int | None = None,
) -> DepthSchedule:
    """The schedule for a model that nobody has calibrated: whole layers, shallow-first.

    Without an alpha it is a cautious one: alpha 0.999 from token 32 on, dropping at most the first
    ``floor(L / 8)`` flex layers. An explicit alpha may drop every flex layer. Each end keeps
    ``ceil(L / 4)`` core layers. Cautious, because the order is a guess: docs/algorithm.md.
    """
    quarter = math.ceil(num_layers / 4)
    first = min(quarter, num_layers) if core_first is None else core_first
    last = min(quarter, num_layers - min(first, num_layers)) if core_last is None else core_last
    flex = [str(layer) for layer in range(first, num_layers - last)]
    if alpha is None:
        alpha, flex = 0.999, flex[: num_layers // 8]
        start = 32 if start is None else start
    return DepthSchedule(num_layers, alpha, start or 0, first, last, tuple(flex))


def resolve_schedule(
    num_layers: int,
    alpha: float | Literal["auto", "off"] = "auto",
    *,
    start: int | None = None,
    core_first: int | None = None,
    core_last: int | None = None,
    stored: DepthSchedule | None = None,
) -> DepthSchedule:
    """The schedule that the depth options mean for one model.

    Args:
        num_layers: the model's layers.
        alpha: a decay; "auto" for the stored schedule, else the cautious default; "off" for full
            depth.
        start, core_first, core_last: each overrides its field; core sizes filter the skip order.
        stored: the model's own schedule, calibrated or shipped with it, where there is one.

    Raises:
        ScheduleError: the options do not fit the model.
    """
    if alpha == "off":
        return DepthSchedule.full(num_layers)
    decay = None if alpha == "auto" else alpha
    if stored is None:
        return default_schedule(num_layers, decay, start, core_first, core_last)
    if stored.num_layers != num_layers:
        raise ScheduleError(
            f"the stored schedule is for {stored.num_layers} layers, the model has {num_layers}"
        )
    first = stored.core_first if core_first is None else core_first
    last = stored.core_last if core_last is None else core_last
    kept = [
        (name, weight)
        for name, weight in zip(stored.skip_order, stored.weights, strict=True)
        if first <= parse_unit(name).layer < num_layers - last
    ]
    return replace(
        stored,
        alpha=stored.alpha if decay is None else decay,
        start=stored.start if start is None else start,
        core_first=first,
        core_last=last,
        skip_order=tuple(name for name, _ in kept),
        weights=tuple(weight for _, weight in kept),
    )
