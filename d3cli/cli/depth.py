"""What the texts of the depth options mean, and the schedule that they lead to."""

from typing import TYPE_CHECKING, Literal

from d3cli.base.errors import UsageError
from d3cli.depth.choice import Choice, choose
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
    model: "LoadedModel",
    alpha: float | Literal["auto", "off"],
    start: int | None,
    core: tuple[int | None, int | None],
    calibrate_with: str,
) -> Choice:
    """The schedule that the depth options mean for this model; `calibrate_with` calibrates it.

    Raises:
        ScheduleError: the options do not fit the model.
    """
    return choose(
        model.num_layers,
        alpha,
        start=start,
        core_first=core[0],
        core_last=core[1],
        stored=model.origin.schedule,
        calibration=model.origin.calibration,
        builtin=model.origin.builtin,
        calibrate_with=calibrate_with,
    )
