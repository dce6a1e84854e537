"""Chooses the depth schedule that drafts in the lossless mode.

A draft is a short reply of its own, whose first token is token 1 of the schedule. What it drops
costs no quality, only acceptance. Returns notes, and prints nothing. Knows nothing of loaded
models; no torch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from d3cli.base.errors import Setting, Words
from d3cli.depth.choice import Choice, Source
from d3cli.depth.draft_record import DraftCalibration
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.resolve import resolve_schedule
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import UnitChoice, WeightBytes

MODE = "lossless mode: "
_NO_DRAFT = (
    f"{MODE}no draft can pay, so decoding is plain: at less depth there is nothing to leave out; ",
    *("d3 calibrate ", Setting("for", "lossless"), " looks for a schedule, "),
    *(Setting("quantization", "nested"), " has low planes, and ", Setting("alpha", "0.5")),
    " drops layers",
)


def choose_for_drafts(
    weight_bytes: WeightBytes,
    draft_source: Literal["auto", "lookup", "depth", "model"],
    alpha: float | Literal["auto", "off"] = "auto",
    *,
    start: int | None = None,
    core_first: int | None = None,
    core_last: int | None = None,
    units: UnitChoice = "auto",
    stored: Schedule | None = None,
    drafts: DraftCalibration | DepthSchedule | None = None,
) -> Choice:
    """The schedule that the depth options mean for drafts, its source and notes.

    A number as alpha decays from the first drafted token on. Without one, the schedule stored for
    drafts is used, or the one that ships with the model. Without either, nested weights lose all
    their low planes at once, and other weights nothing: full depth drafts nothing.

    Args:
        weight_bytes, alpha, core_first, core_last, units, stored: as for `resolve_schedule`.
        draft_source: what drafts.
        start: has no effect.
        drafts: what was found for drafts, or ships with the model. If they do not pay, only the
            source "depth" uses it.

    Raises:
        ScheduleError: the options do not fit the model.
    """
    by_depth = draft_source in ("auto", "depth")
    given = {
        "alpha": alpha not in ("auto", "off"),
        "start": start is not None,
        "core_first": core_first is not None,
        "core_last": core_last is not None,
        "units": units != "auto",
    }
    if by_depth and given["alpha"]:
        schedule = resolve_schedule(
            weight_bytes,
            alpha,
            start=0,
            core_first=core_first,
            core_last=core_last,
            units=units,
            stored=stored,
        )
        of_prompt = isinstance(schedule, PromptSchedule)
        words = f" is for the drafts: {schedule.in_words()}"
        words += ", ordered by the prompt" if of_prompt else ""
        notes = [(MODE, Setting("alpha"), words), *_without_effect(given, "start")]
        return Choice(schedule, Source.PROMPT if of_prompt else Source.FLAGS, tuple(notes))
    notes = _without_effect(given, *given)
    if by_depth and alpha == "auto":
        chosen = _without_options(weight_bytes, draft_source == "depth", drafts)
        if chosen is not None:
            return replace(chosen, notes=(*notes, *chosen.notes))
    if draft_source == "depth":
        notes.append(_NO_DRAFT)
    full = DepthSchedule.full(len(weight_bytes.layers))
    return Choice(full, Source.OFF if alpha == "off" else Source.DEFAULT, tuple(notes))


def _without_options(
    weight_bytes: WeightBytes,
    insists: bool,
    drafts: DraftCalibration | DepthSchedule | None,
) -> Choice | None:
    """What drafts where no alpha is given; None if nothing can be left out.

    Args:
        insists: whether the user asked for drafts by depth, even if they do not pay.
    """
    if isinstance(drafts, DepthSchedule):
        return Choice(drafts, Source.SHIPPED)
    if drafts is not None:
        if drafts.pays or insists:
            return Choice(drafts.schedule, Source.CALIBRATION, (_calibrated(drafts),))
        # What does not pay is left out without a word: other sources draft.
        return Choice(DepthSchedule.full(len(weight_bytes.layers)), Source.CALIBRATION)
    planes = weight_bytes.unit_names("plane")
    if not planes:
        return None
    note = f"{MODE}drafts leave out the low planes of the weights"
    return Choice(static_schedule(weight_bytes, planes), Source.DEFAULT, (note,))


def _calibrated(drafts: DraftCalibration) -> str:
    words = f"{MODE}drafts as calibrated: {drafts.schedule.in_words()}"
    if drafts.pays:
        return words
    return f"{words}; they did not pay, so d3 drafts only where that changes"


def _without_effect(given: Mapping[str, bool], *names: str) -> list[Words]:
    """Says which of the settings that are given have no effect."""
    idle = [Setting(name) for name in names if given[name]]
    if not idle:
        return []
    listed: list[str | Setting] = [idle[0]]
    for at, setting in enumerate(idle[1:], start=2):
        listed += [" and " if at == len(idle) else ", ", setting]
    return [(MODE, *listed, f" {'has' if len(idle) == 1 else 'have'} no effect on drafts")]
