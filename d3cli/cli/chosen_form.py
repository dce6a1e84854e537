"""In which form a model's weights are loaded if the user leaves the choice to d3.

Knows the store of calibrations; no torch.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from d3cli.base.errors import D3Error
from d3cli.cli.model_options import DtypeName, ModelOptions, QuantizationName
from d3cli.depth.calibration_store import find_choice, is_calibrated
from d3cli.depth.units import UnitChoice
from d3cli.files.names import ModelFiles, find_on_disk

if TYPE_CHECKING:
    from d3cli.model.load_plan import LoadOptions

# Where drivers of GPUs show up: NVIDIA, AMD, and Windows' Linux.
GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))


@dataclass(frozen=True, slots=True)
class ChosenForm:
    """In which form a model is loaded.

    Attributes:
        options: the user's; with a calibrated form in place of "auto".
        for_decay: whether weights shall be nested if they can be.
        words: what follows the model's name where that is said; empty if the user chose the form.
    """

    options: ModelOptions
    for_decay: bool = False
    words: str = ""

    @property
    def load_options(self) -> "LoadOptions":
        """The options as `load_model` takes them."""
        found = self.options.load_options
        if self.for_decay:
            found["for_decay"] = True
        return found


def lowers_depth(alpha: float | Literal["auto", "off"], units: UnitChoice) -> bool:
    """Whether an explicit alpha lowers the depth, by units that d3 chooses."""
    return isinstance(alpha, float) and alpha < 1 and units in ("auto", "plane")


def choose_form(name: str, options: ModelOptions, *, decays: bool = False) -> ChosenForm:
    """The form that `d3 calibrate` has chosen for this model, unless the user asks for one.

    If nothing was chosen, the weights stay as stored. But if they are not calibrated either, and
    replies decay, nested weights can lose bits instead of layers. A damaged store is reported
    later, with the depth schedule.

    Args:
        decays: what `lowers_depth` returns for the depth options.
    """
    asked = ChosenForm(options)
    if options.quantization is not QuantizationName.auto or not _on_cpu(options.device):
        return asked
    try:
        files = find_on_disk(name, options.revision)
        chosen = None
        if files is not None:
            chosen = find_choice(files.identity, files.revision, files.fingerprint)
        if chosen is None or chosen.quantization is None:
            return _for_decay(options) if decays and not _is_calibrated(files) else asked
    except D3Error:
        return asked
    if options.dtype not in (DtypeName.auto, chosen.dtype):
        return asked
    try:
        form = replace(
            options,
            dtype=DtypeName(chosen.dtype),
            quantization=QuantizationName(chosen.quantization),
        )
    except ValueError:  # a newer d3 knows it; that it is not used is said with the schedule
        return asked
    return ChosenForm(form, words=f", in {chosen.quantization} as calibrated")


def _is_calibrated(files: ModelFiles | None) -> bool:
    """Whether a model has a schedule for its weights as they are stored."""
    if files is None:
        return False
    return files.builtin or is_calibrated(files.identity, files.revision, files.fingerprint)


def _for_decay(options: ModelOptions) -> ChosenForm:
    """Nested weights, if the dtype allows it."""
    if options.dtype not in (DtypeName.auto, DtypeName.bfloat16):
        return ChosenForm(options)
    words = ", nested for --alpha: 9 bits that become 4.5 (--quantization none keeps its weights)"
    return ChosenForm(options, for_decay=True, words=words)


def _on_cpu(device: str) -> bool:
    """Whether a model runs on the CPU, for which forms are calibrated."""
    return device == "cpu" or (device == "auto" and not any(gpu.exists() for gpu in GPUS))
