"""Chooses the depth schedule: from the options, else the model's own, else full depth.

Returns notes that explain the choice, and prints nothing. Knows nothing of loaded models; no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from d3cli.base.amounts import signed_percent
from d3cli.base.errors import Setting, Words
from d3cli.depth.calibration_record import Calibration
from d3cli.depth.calibration_store import Stale
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.resolve import order_for, resolve_schedule
from d3cli.depth.units import UnitChoice, WeightBytes, parse_unit


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
    stored = order_for(alpha, stored)
    is_full = stored is None or not stored.units
    given = {"start": start, "core_first": core_first, "core_last": core_last}
    changed = [name for name, value in given.items() if value is not None]
    notes: list[Words] = []
    if units != "auto" and not is_full:
        notes.append(_no_effect("units", "the stored order has its own units"))
    if alpha == "auto" and (is_full or not changed):
        idle = [*changed, *(["units"] if units != "auto" else [])] if is_full else []
        chosen = _by_default(schedule, stored, calibration, idle, builtin, calibrate_with)
    else:
        notes += _notes_on_core(schedule, stored, changed)
        chosen = _as_asked(schedule, stored, calibration, calibrate_with)
    return replace(chosen, notes=(*notes, *chosen.notes))


def _as_asked(
    schedule: Schedule,
    stored: Schedule | None,
    calibration: Calibration | Stale | None,
    calibrate_with: str,
) -> Choice:
    """What the options ask for: an order of the prompt, or changes of a stored schedule."""
    if stored is None and isinstance(schedule, PromptSchedule):
        stale = [_stale(calibration, "", calibrate_with)] if isinstance(calibration, Stale) else []
        return Choice(schedule, Source.PROMPT, (*stale, _by_prompt(schedule, calibrate_with)))
    return Choice(schedule, Source.FLAGS)


def _by_default(
    schedule: Schedule,
    stored: Schedule | None,
    calibration: Calibration | Stale | None,
    idle: Sequence[str],
    builtin: bool,
    calibrate_with: str,
) -> Choice:
    """What runs if no depth is asked for: the stored schedule, else full depth.

    Args:
        idle: the options that have no effect at full depth.
    """
    if isinstance(calibration, Calibration):
        notes = (_measured(calibration, schedule), *map(_needs_alpha, idle))
        return Choice(schedule, Source.CALIBRATION, notes)
    if stored is not None:
        instead = "the schedule that ships with the model" if builtin else ""
        stale = [_stale(calibration, instead, calibrate_with)] if calibration is not None else []
        return Choice(schedule, Source.SHIPPED, tuple(stale))
    why = _not_calibrated(calibration, calibrate_with)
    return Choice(schedule, Source.DEFAULT, (why, *map(_needs_alpha, idle)))


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


def _notes_on_core(
    schedule: Schedule, stored: Schedule | None, changed: Sequence[str]
) -> Iterator[Words]:
    """What an option about core layers, or an order that names none but them, does not do.

    Args:
        changed: the options that were given.
    """
    units = [parse_unit(name) for name in (stored or schedule).units]
    if schedule.alpha < 1 and not schedule.units:
        yield "depth: every layer is a core layer, so no layer is dropped"
    elif units and all(unit.low for unit in units):
        for name in changed:
            if name != "start":
                yield _no_effect(name, "core layers lose low planes too")
    elif stored and (
        schedule.core_first < stored.core_first or schedule.core_last < stored.core_last
    ):
        yield (
            *("depth: lowering ", Setting("core_first"), " or ", Setting("core_last")),
            " has no effect: the stored order never skips those layers",
        )


def _no_effect(name: str, why: str) -> Words:
    return ("depth: ", Setting(name), f" has no effect: {why}")


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
