"""Where to compute and in what: devices and dtypes, as a user names them."""

from typing import Literal, get_args

import torch

from d3cli.base.errors import UsageError

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


def pick_device(device: str) -> torch.device:
    """The device that a name means; "auto" is the first GPU, else the CPU.

    Raises:
        UsageError: another word, or a GPU that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f'--device is "{device}"', "use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA GPU here that torch can use", "use --device cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"there is no GPU {index}", f"torch sees {torch.cuda.device_count()}, counted from 0"
        )
    return torch.device(kind, int(index)) if index else torch.device(kind)


def pick_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The dtype that a name means; "auto" is bfloat16 where the hardware has it, else float32.

    Raises:
        UsageError: another name.
    """
    if dtype not in get_args(Dtype):
        raise UsageError(f'the dtype is "{dtype}"', f"use {', '.join(get_args(Dtype))}")
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    has_bf16 = any(on for name, on in torch.cpu.get_capabilities().items() if "bf16" in name)
    return torch.bfloat16 if has_bf16 else torch.float32
