"""In which form a model's weights are loaded if the user leaves the choice to d3.

Knows the store of calibrations; no torch.
"""

from dataclasses import replace
from pathlib import Path

from d3cli.base.errors import D3Error
from d3cli.cli.model_options import DtypeName, ModelOptions, QuantizationName
from d3cli.depth.calibration_store import find_choice
from d3cli.files.names import find_on_disk

# Where drivers of GPUs show up: NVIDIA, AMD, and Windows' Linux.
GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))


def with_chosen_form(name: str, options: ModelOptions) -> ModelOptions:
    """The options with the form that `d3 calibrate` has chosen for this model.

    They stay as they are if the user asked for a form, or if nothing was chosen: the model is then
    loaded as stored. A damaged store is reported later, with the depth schedule.
    """
    if options.quantization is not QuantizationName.auto or not _on_cpu(options.device):
        return options
    try:
        files = find_on_disk(name, options.revision)
        if files is None:
            return options
        chosen = find_choice(files.identity, files.revision, files.fingerprint)
    except D3Error:
        return options
    if chosen is None or chosen.quantization is None:
        return options
    if options.dtype not in (DtypeName.auto, chosen.dtype):
        return options
    return replace(
        options,
        dtype=DtypeName(chosen.dtype),
        quantization=QuantizationName(chosen.quantization),
    )


def _on_cpu(device: str) -> bool:
    """Whether a model runs on the CPU, for which forms are calibrated."""
    return device == "cpu" or (device == "auto" and not any(gpu.exists() for gpu in GPUS))
