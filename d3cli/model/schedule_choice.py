"""Chooses the depth schedule of a loaded model, by its weights and its calibration; no torch."""

from typing import TYPE_CHECKING, Literal

from d3cli.base.errors import Setting, UsageError
from d3cli.depth.choice import Choice, choose
from d3cli.depth.draft_choice import choose_for_drafts
from d3cli.depth.units import UnitChoice

if TYPE_CHECKING:
    from d3cli.model.model import LoadedModel


def choose_schedule(
    model: "LoadedModel",
    alpha: float | Literal["auto", "off"],
    start: int | None,
    core: tuple[int | None, int | None],
    units: UnitChoice,
    calibrate_with: str,
) -> Choice:
    """The schedule that the depth options ask for.

    A stored or shipped schedule may start beyond the context: the reply then runs at full depth.

    Args:
        calibrate_with: the command that calibrates this model, for notes.

    Raises:
        UsageError: `start` is beyond the model's context.
        ScheduleError: the options do not fit the model.
    """
    if start is not None and start > model.context_length:
        raise UsageError(
            (
                Setting("start"),
                f" is {start:,}, beyond the model's context of {model.context_length:,} tokens",
            ),
            "use a smaller value",
        )
    if units == "sublayer":
        model.check_sublayers()
    return choose(
        model.weight_bytes,
        alpha,
        start=start,
        core_first=core[0],
        core_last=core[1],
        units=units,
        stored=model.origin.schedule,
        calibration=model.origin.calibration,
        builtin=model.origin.builtin,
        calibrate_with=calibrate_with,
    )


def choose_draft_schedule(
    model: "LoadedModel",
    source: Literal["auto", "lookup", "depth", "model"],
    alpha: float | Literal["auto", "off"],
    start: int | None,
    core: tuple[int | None, int | None],
    units: UnitChoice,
) -> Choice:
    """The schedule by which the model itself drafts, in the lossless mode.

    Args:
        source: what drafts.

    Raises:
        ScheduleError: the options do not fit the model.
    """
    if units == "sublayer":
        model.check_sublayers()
    return choose_for_drafts(
        model.weight_bytes,
        source,
        alpha,
        start=start,
        core_first=core[0],
        core_last=core[1],
        units=units,
        stored=model.origin.schedule,
        drafts=model.origin.drafting,
    )
