"""Devices and dtypes by the names that a user gives, and what this hardware multiplies."""

from functools import cache
from typing import Literal, get_args

import torch

from d3cli.base.errors import Setting, UsageError

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


def pick_device(device: str) -> torch.device:
    """The device with this name; "auto" is the first GPU, else the CPU.

    Raises:
        UsageError: the name is unknown, or there is no such GPU.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(
            (Setting("device"), f' is "{device}"'), "it must be auto, cpu, cuda or cuda:N"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "torch finds no CUDA GPU here", ("use ", Setting("device", "cpu")), field="device"
        )
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"there is no GPU {index}",
            f"torch finds {torch.cuda.device_count()}, counted from 0",
            field="device",
        )
    return torch.device(kind, int(index)) if index else torch.device(kind)


def pick_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The dtype with this name; "auto" is bfloat16 if the hardware multiplies it, else float32.

    On a CPU, loading may still choose bfloat16 where float32 is found here: `choices` measures.

    Raises:
        UsageError: the name is unknown.
    """
    if dtype not in get_args(Dtype):
        raise UsageError(
            (Setting("dtype"), f' is "{dtype}"'), f"it must be one of {', '.join(get_args(Dtype))}"
        )
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16, and torch may use that.

    On x86-64, ``ONEDNN_MAX_CPU_ISA`` may forbid it.
    """
    features = torch.cpu.get_capabilities()
    if not any(on for name, on in features.items() if "bf16" in name):
        return False
    return features.get("architecture") != "x86_64" or onednn_takes_bfloat16()


@cache
def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which this processor multiplies matrices of a dtype the fastest.

    Without instructions for bfloat16, torch multiplies it many times slower than float32.
    """
    if dtype == torch.bfloat16 and not cpu_has_bfloat16():
        return torch.float32
    return dtype


def onednn_takes_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 here; torch may have been built without oneDNN."""
    mkldnn = torch.backends.mkldnn
    return bool(
        mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
