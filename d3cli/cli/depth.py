"""What the texts of the depth options mean, and the schedule that they lead to."""

from typing import TYPE_CHECKING, Literal

from d3cli.base.errors import UsageError
from d3cli.cli.calibrate.stored import percent
from d3cli.cli.output import Output
from d3cli.depth.calibration_record import Calibration
from d3cli.depth.calibration_store import Stale
from d3cli.depth.schedule import DepthSchedule

if TYPE_CHECKING:
    from d3cli.model.model import LoadedModel


def parse_alpha(text: str) -> float | Literal["auto", "off"]:
    """``--alpha``: a number in (0, 1], "auto" or "off".

    Raises:
        UsageError: anything else.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    try:
        return DepthSchedule(num_layers=1, alpha=float(text)).alpha
    except ValueError:
        raise UsageError(
            f'--alpha is "{text}"', 'give a number in (0, 1], "auto" or "off"'
        ) from None


def parse_start(text: str | None, max_tokens: int | None) -> int | None:
    """``--start``: tokens, or a share of an explicit ``--max-tokens``.

    Raises:
        UsageError: neither, or a share of an unknown length.
    """
    if text is None:
        return None
    share = text.endswith("%")
    try:
        number = float(text[:-1]) if share else int(text)
    except ValueError:
        raise UsageError(f'--start is "{text}"', "give tokens (32) or a share (20%)") from None
    if not share:
        if number < 0:
            raise UsageError(f"--start is {text}", "it is a number of tokens, 0 or more")
        return int(number)
    if max_tokens is None:
        raise UsageError(f"--start {text} is a share of --max-tokens", "give --max-tokens too")
    if not 0 <= number <= 100:
        raise UsageError(f"--start is {text}", "a share lies between 0% and 100%")
    return round(number / 100 * max_tokens)


def choose_schedule(
    output: Output,
    model: "LoadedModel",
    alpha: float | Literal["auto", "off"],
    start: int | None,
    core: tuple[int | None, int | None],
    command: str,
) -> tuple["DepthSchedule", str]:
    """The schedule and its source: "off", "flags", "calibration", "shipped" or "default".

    `command` calibrates this model.
    """
    schedule = model.schedule(alpha, start=start, core_first=core[0], core_last=core[1])
    if alpha == "off":
        return schedule, "off"
    if alpha != "auto" or start is not None or core != (None, None):
        if schedule.alpha < 1 and not schedule.skip_order:
            output.note("depth: every layer is a core layer, so nothing is dropped")
        stored = model.origin.schedule
        if stored and (
            schedule.core_first < stored.core_first or schedule.core_last < stored.core_last
        ):
            output.note("depth: a smaller core adds no layers to this model's own skip order")
        return schedule, "flags"
    if isinstance(model.origin.calibration, Stale):
        output.note(_stale(model.origin.calibration, model, command))
    if isinstance(model.origin.calibration, Calibration):
        drop, asked = model.origin.calibration.unseen.drop, model.origin.calibration.target_drop
        output.note(
            f"depth: calibrated: {percent(drop)} perplexity ({100 * asked:g}% was allowed), "
            f"{schedule.in_words()}"
        )
        return schedule, "calibration"
    if model.origin.schedule is not None:
        return schedule, "shipped"
    because, better = "", ""
    if model.origin.calibration is None:  # else the note above says what is wrong with it
        because, better = "this model is not calibrated, so ", f"{command} finds better; "
    what = f"all {schedule.num_layers} layers ({better}--alpha 0.99 drops some)"
    if schedule.skip_order:
        what = f"{schedule.in_words()} ({better}--alpha off for full depth)"
    output.note(f"depth: {because}a cautious default: {what}")
    return schedule, "default"


def _stale(stale: Stale, model: "LoadedModel", command: str) -> str:
    unused = "the calibration made here is not used"
    if model.origin.builtin:
        unused = "the schedule that ships with the model is used, not the calibration made here"
    return f"depth: {unused}: {stale.reason}; {stale.remedy or f'run: {command}'}"
