"""Chooses the depth schedule: from the options, else the model's own, else a default.

Returns notes that explain the choice, and prints nothing. Knows nothing of loaded models; no torch.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from d3cli.base.amounts import signed_percent
from d3cli.base.errors import ScheduleError, Setting, Words
from d3cli.depth.calibration_record import Calibration
from d3cli.depth.calibration_store import Stale
from d3cli.depth.schedule import DepthSchedule, check_alpha, check_counts
from d3cli.depth.units import parse_unit


class Source(StrEnum):
    """Where a depth schedule comes from, as written in JSON."""

    OFF = "off"
    FLAGS = "flags"
    CALIBRATION = "calibration"
    SHIPPED = "shipped"
    DEFAULT = "default"

    @property
    def in_words(self) -> str:
        return {
            Source.OFF: "as asked for",
            Source.FLAGS: "as asked for",
            Source.CALIBRATION: "calibrated for this model",
            Source.SHIPPED: "ships with this model",
            Source.DEFAULT: "a cautious default",
        }[self]


@dataclass(frozen=True, slots=True)
class Choice:
    """A depth schedule, where it comes from, and what the user should know about it."""

    schedule: DepthSchedule
    source: Source
    notes: tuple[Words, ...] = ()


def choose(
    num_layers: int,
    alpha: float | Literal["auto", "off"] = "auto",
    *,
    start: int | None = None,
    core_first: int | None = None,
    core_last: int | None = None,
    stored: DepthSchedule | None = None,
    calibration: Calibration | Stale | None = None,
    builtin: bool = False,
    calibrate_with: str = "d3 calibrate",
) -> Choice:
    """The schedule that the depth options mean for one model, its source and notes.

    Args:
        num_layers, alpha, start, core_first, core_last, stored: as for `resolve_schedule`.
        calibration: what the store holds for the model, or why that is not used.
        builtin: whether this is the model that ships with d3.
        calibrate_with: the command that calibrates this model.

    Raises:
        ScheduleError: the options do not fit the model.
    """
    schedule = resolve_schedule(
        num_layers, alpha, start=start, core_first=core_first, core_last=core_last, stored=stored
    )
    if alpha == "off":
        return Choice(schedule, Source.OFF)
    if alpha != "auto" or (start, core_first, core_last) != (None, None, None):
        return Choice(schedule, Source.FLAGS, _notes_on_flags(schedule, stored))
    if isinstance(calibration, Calibration):
        return Choice(schedule, Source.CALIBRATION, (_measured(calibration, schedule),))
    notes: list[Words] = []
    if calibration is not None:
        notes.append(_stale(calibration, builtin, calibrate_with))
    if stored is not None:
        return Choice(schedule, Source.SHIPPED, tuple(notes))
    notes.append(_default(schedule, calibrate_with if calibration is None else ""))
    return Choice(schedule, Source.DEFAULT, tuple(notes))


def _notes_on_flags(schedule: DepthSchedule, stored: DepthSchedule | None) -> tuple[Words, ...]:
    notes: list[Words] = []
    if schedule.alpha < 1 and not schedule.skip_order:
        notes.append("depth: every layer is a core layer, so no layer is dropped")
    if stored and (
        schedule.core_first < stored.core_first or schedule.core_last < stored.core_last
    ):
        notes.append(
            (
                *("depth: lowering ", Setting("core_first"), " or ", Setting("core_last")),
                " has no effect: the stored order never skips those layers",
            )
        )
    return tuple(notes)


def _measured(calibration: Calibration, schedule: DepthSchedule) -> str:
    return (
        f"depth: calibrated: {signed_percent(calibration.unseen.drop)} perplexity "
        f"({100 * calibration.target_drop:g}% was allowed), {schedule.in_words()}"
    )


def _stale(stale: Stale, builtin: bool, calibrate_with: str) -> str:
    instead = "; the schedule that ships with the model is used instead" if builtin else ""
    remedy = stale.remedy or f"run: {calibrate_with}"
    return f"depth: the stored calibration is not used: {stale.reason}{instead}; {remedy}"


def _default(schedule: DepthSchedule, calibrate_with: str) -> Words:
    """What the default does. Empty `calibrate_with`: another note says how to calibrate."""
    because = "this model is not calibrated, so " if calibrate_with else ""
    better = f"{calibrate_with} finds better; " if calibrate_with else ""
    if schedule.skip_order:
        what, change = schedule.in_words(), Setting("alpha", "off")
        effect = " for full depth)"
    else:
        what, change = f"all {schedule.num_layers} layers", Setting("alpha", "0.99")
        effect = " drops some)"
    return (f"depth: {because}a cautious default: {what} ({better}", change, effect)


def default_schedule(
    num_layers: int,
    alpha: float | None = None,
    start: int | None = None,
    core_first: int | None = None,
    core_last: int | None = None,
) -> DepthSchedule:
    """The schedule for a model without a calibration: whole layers, shallow-first.

    Without an alpha it is cautious: alpha 0.999 from token 32, dropping at most the first
    ``floor(L / 8)`` flex layers. An explicit alpha may drop every flex layer. Each end keeps
    ``ceil(L / 4)`` core layers. It is cautious because the order is a guess; see docs/algorithm.md.
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
        num_layers: the number of the model's layers.
        alpha: a decay; "auto" for the stored schedule or else the cautious default; "off" for full
            depth.
        start, core_first, core_last: override their fields; core sizes filter the skip order.
        stored: the model's own schedule, calibrated or shipped with it, if there is one.

    Raises:
        ScheduleError: the options do not fit the model.
    """
    counts = {"start": start, "core_first": core_first, "core_last": core_last}
    check_counts(**{name: count for name, count in counts.items() if count is not None})
    if alpha == "off":
        return DepthSchedule.full(num_layers)
    decay = None if alpha == "auto" else alpha
    if decay is not None:
        check_alpha(decay, 'use a number in (0, 1], "auto" or "off"')
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
