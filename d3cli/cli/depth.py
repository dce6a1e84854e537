"""Reads the depth options, and chooses the schedule by which a model drafts."""

import shlex
from typing import TYPE_CHECKING, Literal

from d3cli.base.errors import Setting, UsageError
from d3cli.cli.model_options import DtypeName, ModelOptions, QuantizationName
from d3cli.depth.choice import Choice
from d3cli.depth.draft_choice import choose_for_drafts
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import UnitChoice

if TYPE_CHECKING:
    from d3cli.decode.draft.drafter import SourceChoice
    from d3cli.model.model import LoadedModel


def parse_alpha(text: str) -> float | Literal["auto", "off"]:
    """Reads an alpha: a number in (0, 1], "auto" or "off".

    Raises:
        UsageError: it is none of these.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    try:
        return DepthSchedule(num_layers=1, alpha=float(text)).alpha
    except ValueError:
        raise UsageError(
            (Setting("alpha"), f' is "{text}"'), 'use a number in (0, 1], "auto" or "off"'
        ) from None


def parse_start(text: str | None, max_tokens: int | None) -> int | None:
    """Reads a start: a number of tokens, or a share of `max_tokens` such as "20%".

    Raises:
        UsageError: it is neither, or a share while `max_tokens` is None.
    """
    if text is None:
        return None
    share = text.endswith("%")
    try:
        number = float(text[:-1]) if share else int(text)
    except ValueError:
        raise UsageError(
            (Setting("start"), f' is "{text}"'), "use tokens (32) or a share (20%)"
        ) from None
    if not share:
        if number < 0:
            raise UsageError((Setting("start"), f" is {text}"), "it must be at least 0")
        return int(number)
    if max_tokens is None:
        raise UsageError(
            (Setting("start", text), " is a share of ", Setting("max_tokens")),
            ("set ", Setting("max_tokens"), " as well"),
        )
    if not 0 <= number <= 100:
        raise UsageError((Setting("start"), f" is {text}"), "a share must be between 0% and 100%")
    return round(number / 100 * max_tokens)


def check_planes(
    units: UnitChoice, alpha: float | Literal["auto", "off"], loading: ModelOptions
) -> None:
    """Refuses low planes where another option rules nested weights out, before a model is loaded.

    Raises:
        UsageError: with the option that does.
    """
    if units != "plane" or alpha == "off":
        return
    quantization, device, dtype = loading.quantization, loading.device, loading.dtype
    excluded: tuple[Setting, Setting] | None = None
    if quantization not in (QuantizationName.auto, QuantizationName.nested):
        excluded = Setting("quantization", quantization), Setting("quantization", "nested")
    elif device.startswith("cuda"):
        excluded = Setting("device", device), Setting("device", "cpu")
    elif dtype is DtypeName.float16:
        excluded = Setting("dtype", dtype), Setting("dtype", "bfloat16")
    if excluded is not None:
        cause, instead = excluded
        raise UsageError(
            (Setting("units", "plane"), " drops the low planes of nested weights, which ", cause,
             " excludes"),
            ("use ", instead, ", or leave out ", Setting("units")),
        )  # fmt: skip


def choose_draft_schedule(
    model: "LoadedModel",
    source: "SourceChoice",
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


def calibrate_command(model: str, loading: ModelOptions = ModelOptions()) -> str:  # noqa: B008 - frozen
    """The command that calibrates a model, with the options that it was loaded with."""
    command = f"d3 calibrate {shlex.quote(model)}"
    if loading.revision is not None:
        command += f" --revision {shlex.quote(loading.revision)}"
    if loading.dtype is not DtypeName.auto:
        command += f" --dtype {loading.dtype.value}"
    if loading.quantization is not QuantizationName.auto:
        command += f" --quantization {loading.quantization.value}"
    return command
