"""Chooses the depth schedule: from the options, else the model's own, else full depth.

Returns notes that explain the choice, and prints nothing. Knows nothing of loaded models; no torch.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from d3cli.base.amounts import signed_percent
from d3cli.base.errors import ScheduleError, Setting, Words
from d3cli.depth.calibration_record import Calibration
from d3cli.depth.calibration_store import Stale
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule, check_alpha, check_counts
from d3cli.depth.units import UnitChoice, UnitKind, WeightBytes, parse_unit


class Source(StrEnum):
    """Where a depth schedule comes from, as written in JSON."""

    OFF = "off"
    FLAGS = "flags"
    PROMPT = "prompt"
    CALIBRATION = "calibration"
    SHIPPED = "shipped"
    DEFAULT = "default"

    @property
    def in_words(self) -> str:
        return {
            Source.OFF: "as asked for",
            Source.FLAGS: "as asked for",
            Source.PROMPT: "ordered by the prompt",
            Source.CALIBRATION: "calibrated for this model",
            Source.SHIPPED: "ships with this model",
            Source.DEFAULT: "this model is not calibrated",
        }[self]


@dataclass(frozen=True, slots=True)
class Choice:
    """A depth schedule, where it comes from, and what the user should know about it."""

    schedule: Schedule
    source: Source
    notes: tuple[Words, ...] = ()


def choose(
    weight_bytes: WeightBytes,
    alpha: float | Literal["auto", "off"] = "auto",
    *,
    start: int | None = None,
    core_first: int | None = None,
    core_last: int | None = None,
    units: UnitChoice = "auto",
    stored: Schedule | None = None,
    calibration: Calibration | Stale | None = None,
    builtin: bool = False,
    calibrate_with: str = "d3 calibrate",
) -> Choice:
    """The schedule that the depth options mean for one model, its source and notes.

    Args:
        weight_bytes, alpha, start, core_first, core_last, units, stored: as for `resolve_schedule`.
        calibration: what the store holds for the model, or why that is not used.
        builtin: whether this is the model that ships with d3.
        calibrate_with: the command that calibrates this model.

    Raises:
        ScheduleError: the options do not fit the model.
    """
    schedule = resolve_schedule(
        weight_bytes,
        alpha,
        start=start,
        core_first=core_first,
        core_last=core_last,
        units=units,
        stored=stored,
    )
    if alpha == "off":
        return Choice(schedule, Source.OFF)
    notes: list[Words] = []
    if stored is not None and units != "auto":
        notes.append(
            ("depth: ", Setting("units"), " has no effect: the stored order has its own units")
        )
    changed = (start, core_first, core_last) != (None, None, None)
    if alpha != "auto" or (changed and stored is not None):
        if isinstance(schedule, PromptSchedule) and stored is None:
            if isinstance(calibration, Stale):
                notes.append(_stale(calibration, "", calibrate_with))
            if schedule.kind == "plane" and (core_first or core_last):
                setting = Setting("core_first" if core_first else "core_last")
                notes.append(
                    ("depth: ", setting, " has no effect: core layers lose low planes too")
                )
            return Choice(schedule, Source.PROMPT, (*notes, _by_prompt(schedule, calibrate_with)))
        return Choice(schedule, Source.FLAGS, (*notes, *_notes_on_flags(schedule, stored)))
    if isinstance(calibration, Calibration):
        return Choice(schedule, Source.CALIBRATION, (*notes, _measured(calibration, schedule)))
    if stored is not None:
        if calibration is not None:
            instead = "the schedule that ships with the model" if builtin else ""
            notes.append(_stale(calibration, instead, calibrate_with))
        return Choice(schedule, Source.SHIPPED, tuple(notes))
    given = {"start": start, "core_first": core_first, "core_last": core_last}
    idle = [name for name, value in given.items() if value is not None]
    idle += ["units"] if units != "auto" else []
    why = _not_calibrated(calibration, calibrate_with)
    return Choice(schedule, Source.DEFAULT, (*notes, why, *map(_needs_alpha, idle)))


def _not_calibrated(stale: Stale | None, calibrate_with: str) -> str:
    """Why a model runs at full depth."""
    if stale is not None:
        return _stale(stale, "full depth", calibrate_with)
    return (
        "depth: full depth, since this model is not calibrated; "
        f"{calibrate_with} may find something faster"
    )


def _needs_alpha(name: str) -> Words:
    return ("depth: ", Setting(name), " has no effect at full depth; ", Setting("alpha", "0.99"),
            " lowers it")  # fmt: skip


def _by_prompt(schedule: PromptSchedule, calibrate_with: str) -> str:
    return (
        f"depth: {schedule.in_words()}, ordered by the prompt; nobody has measured what it costs: "
        f"{calibrate_with} does"
    )


def _notes_on_flags(schedule: Schedule, stored: Schedule | None) -> tuple[Words, ...]:
    notes: list[Words] = []
    if schedule.alpha < 1 and not schedule.units:
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


def _measured(calibration: Calibration, schedule: Schedule) -> str:
    return (
        f"depth: calibrated: {signed_percent(calibration.unseen.drop)} perplexity "
        f"({100 * calibration.target_drop:g}% was allowed), {schedule.in_words()}"
        + (", in each prompt's own order" if isinstance(schedule, PromptSchedule) else "")
    )


def _stale(stale: Stale, instead: str, calibrate_with: str) -> str:
    """Why a stored calibration is not used, what is used `instead`, and the remedy."""
    used = f"; {instead} is used instead" if instead else ""
    remedy = stale.remedy or f"run: {calibrate_with}"
    return f"depth: the stored calibration is not used: {stale.reason}{used}; {remedy}"


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
        stored: the model's own schedule, calibrated or shipped with it, if there is one.

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
    if units == "plane" and not weight_bytes.is_nested:
        raise ScheduleError(
            "the weights are not nested, so they have no low planes to drop",
            ("use ", Setting("quantization", "nested")),
        )
    if alpha == "off":
        return DepthSchedule.full(num_layers)
    decay = None if alpha == "auto" else alpha
    if decay is not None:
        check_alpha(decay, 'use a number in (0, 1], "auto" or "off"')
    if stored is None:
        if decay is None:
            return DepthSchedule(num_layers, 1.0, start or 0, core_first or 0, core_last or 0)
        return _by_influence(weight_bytes, decay, start or 0, core_first, core_last, units)
    if stored.num_layers != num_layers:
        raise ScheduleError(
            f"the stored schedule is for {stored.num_layers} layers, the model has {num_layers}"
        )
    return _changed(stored, decay, start, core_first, core_last)


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
