"""Checks the depth options that exclude others, and names the command that calibrates a model."""

import shlex
from typing import Literal

from d3cli.base.errors import Setting, UsageError
from d3cli.base.launch import launched
from d3cli.cli.model_options import DtypeName, ModelOptions, QuantizationName
from d3cli.depth.units import UnitChoice


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
    if launched() is not None:
        raise UsageError(
            (Setting("units", "plane"), " drops the low planes of nested weights, which cannot be "
             "split over ranks"),
            ("leave out ", Setting("units"), ", or run it without torchrun"),
        )  # fmt: skip
    excluded: tuple[Setting, Setting] | None = None
    if quantization not in (QuantizationName.auto, QuantizationName.nested):
        excluded = Setting("quantization", quantization), Setting("quantization", "nested")
    elif device.startswith("cuda"):
        excluded = Setting("device", device), Setting("device", "cpu")
    elif loading.max_memory is not None and quantization is QuantizationName.auto:
        # Weights that are made while loading cannot be split, so they are not chosen unasked.
        excluded = Setting("max_memory"), Setting("quantization", "nested")
    elif dtype is DtypeName.float16:
        excluded = Setting("dtype", dtype), Setting("dtype", "bfloat16")
    if excluded is not None:
        cause, instead = excluded
        raise UsageError(
            (Setting("units", "plane"), " drops the low planes of nested weights, which ", cause,
             " excludes"),
            ("use ", instead, ", or leave out ", Setting("units")),
        )  # fmt: skip


def calibrate_command(model: str, loading: ModelOptions = ModelOptions()) -> str:  # noqa: B008 - frozen
    """The command that calibrates a model, with the options that it was loaded with."""
    program = "d3" if launched() is None else "torchrun … -m d3cli"
    command = f"{program} calibrate {shlex.quote(model)}"
    if loading.revision is not None:
        command += f" --revision {shlex.quote(loading.revision)}"
    if loading.dtype is not DtypeName.auto:
        command += f" --dtype {loading.dtype.value}"
    if loading.quantization is not QuantizationName.auto:
        command += f" --quantization {loading.quantization.value}"
    if loading.max_memory is not None:
        command += f" --max-memory {shlex.quote(loading.max_memory)}"
    return command
