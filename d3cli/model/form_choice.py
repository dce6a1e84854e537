"""In which form a model's weights are loaded if the user leaves the choice to d3.

Knows the store of calibrations, and models only by their names and files; no torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from d3cli.base.errors import D3Error
from d3cli.depth.calibration_store import find_choice, is_calibrated
from d3cli.depth.units import UnitChoice
from d3cli.files.names import ModelFiles, find_on_disk

if TYPE_CHECKING:
    from d3cli.kernels.device import Dtype
    from d3cli.kernels.quantization import Quantization

    QuantizationChoice = Literal["auto", "none"] | Quantization

# The names of the options, which a store written by a newer d3 may exceed.
DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTIZATIONS = ("auto", "none", "int8", "int4", "nested", "bnb-4bit", "bnb-8bit")
# Where drivers of GPUs show up: NVIDIA, AMD, and Windows' Linux.
GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))


@dataclass(frozen=True, slots=True)
class FormChoice:
    """In which form a model is loaded; the names are those of the options.

    Attributes:
        dtype: as asked for, or as calibrated: "auto", "bfloat16".
        quantization: as asked for, or as calibrated; "auto" if nothing was chosen.
        for_decay: whether weights shall be nested if they can be.
        is_calibrated: whether the form is a calibrated one, which was not asked for by name.
    """

    dtype: "Dtype"
    quantization: "QuantizationChoice"
    for_decay: bool = False
    is_calibrated: bool = False


def lowers_depth(alpha: float | Literal["auto", "off"], units: UnitChoice) -> bool:
    """Whether an explicit alpha lowers the depth, by units that d3 chooses."""
    return isinstance(alpha, (int, float)) and alpha < 1 and units in ("auto", "plane")


def choose_form(
    name: str,
    *,
    dtype: "Dtype" = "auto",
    quantization: "QuantizationChoice" = "auto",
    device: str = "auto",
    revision: str | None = None,
    decays: bool = False,
) -> FormChoice:
    """The form that `d3 calibrate` has chosen for this model, unless the user asks for one.

    If nothing was chosen, the weights stay as stored. But if they are not calibrated either, and
    replies decay, nested weights can lose bits instead of layers. A damaged store is reported
    later, with the depth schedule.

    Args:
        quantization: "none" for the weights as stored.
        decays: what `lowers_depth` returns for the depth options.
    """
    asked = FormChoice(dtype, quantization)
    if quantization != "auto" or not _on_cpu(device):
        return asked
    try:
        files = find_on_disk(name, revision)
        chosen = None
        if files is not None:
            chosen = find_choice(files.identity, files.revision, files.fingerprint)
        if chosen is None or chosen.quantization is None:
            nests = decays and dtype in ("auto", "bfloat16") and not _is_calibrated(files)
            return FormChoice(dtype, quantization, for_decay=nests)
    except D3Error:
        return asked
    # What a newer d3 has stored is not used; that is said with the schedule.
    known = chosen.dtype in DTYPES and chosen.quantization in QUANTIZATIONS
    if not known or dtype not in ("auto", chosen.dtype):
        return asked
    return FormChoice(
        cast("Dtype", chosen.dtype),
        cast("QuantizationChoice", chosen.quantization),
        is_calibrated=True,
    )


def _is_calibrated(files: ModelFiles | None) -> bool:
    """Whether a model has a schedule for its weights as they are stored."""
    if files is None:
        return False
    return files.builtin or is_calibrated(files.identity, files.revision, files.fingerprint)


def _on_cpu(device: str) -> bool:
    """Whether a model runs on the CPU, for which forms are calibrated."""
    return device == "cpu" or (device == "auto" and not any(gpu.exists() for gpu in GPUS))
