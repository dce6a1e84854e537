"""4-bit and 8-bit weights by bitsandbytes, which is imported only where they are asked for.

NF4 with double quantization and a 16-bit compute dtype (Dettmers et al., arXiv 2305.14314), and
LLM.int8() (arXiv 2208.07339). Knows nothing of files or depth.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from d3cli.base.errors import ModelError
from d3cli.files.json_files import BROKEN_FILES
from d3cli.files.safetensors import FLOATS, TensorInfo
from d3cli.kernels.nf4 import register_rounding

Quantization = Literal["bnb-4bit", "bnb-8bit"]

# What bitsandbytes' 4-bit kernel for CPUs asserts: out_features and in_features divisible by these.
CPU_MULTIPLES = (32, 64)


def import_bitsandbytes() -> None:
    """Imports it without the compiled code that it would fetch from the hub.

    Where the package `kernels` is installed, bitsandbytes downloads a CPU kernel while it is
    imported, and runs it. d3 asks nobody for code, and what its results and memory were tested
    with are the kernels that bitsandbytes ships.
    """
    known = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment] # importing it now fails
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it says that it could not
    try:
        import bitsandbytes  # noqa: F401
    finally:
        logger.setLevel(level)
        if known is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = known


def check_quantization(name: str, stored: Mapping[str, Any], wanted: Quantization | None) -> None:
    """Refuses what cannot be quantized, or is quantized already.

    Args:
        name: what to call the model.
        stored: its config.json.

    Raises:
        ModelError: with the reason.
    """
    found = stored.get("quantization_config")
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method != "bitsandbytes":
            raise ModelError(
                f"{name} is quantized by {method or 'an unknown method'}, which d3 cannot read",
                "get the same model in bfloat16, and use --quantization bnb-4bit",
            )
        kind = found.get("bnb_4bit_quant_type")
        if kind not in (None, "nf4", "fp4"):
            raise ModelError(
                f"{name} is quantized to {kind!r:.40}, which bitsandbytes does not know",
                BROKEN_FILES,
            )
        if wanted is not None:
            raise ModelError(f"{name} is quantized already", "leave out --quantization")
    if wanted is not None and stored.get("num_experts_per_tok") is not None:
        raise ModelError(
            f"{name} is a mixture of experts, whose experts bitsandbytes leaves as they are",
            "it would save almost nothing: leave out --quantization",
        )


def quantization_config(
    config: Any, wanted: Quantization, dtype: torch.dtype, device: torch.device
) -> tuple[BitsAndBytesConfig, list[str]]:
    """The settings for a model of this config, and the linears that must stay in `dtype`.

    The LM head always stays; on a CPU also what the 4-bit kernel cannot multiply.
    """
    import_bitsandbytes()
    if wanted == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True), []
    unfit = []
    if device.type == "cpu":
        unfit = _unfit_for_cpu(config)
        register_rounding()
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,  # without it, saving after a forward corrupts weights
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "embed_out", *unfit],
    )
    return settings, unfit


def is_quantized_while_loading(tensor: TensorInfo, wanted: Quantization | None) -> bool:
    """Whether this is a linear of a layer, which bitsandbytes turns into another form."""
    return wanted is not None and tensor.layer is not None and len(tensor.shape) == 2


def is_converted(tensor: TensorInfo, dtype: torch.dtype, wanted: Quantization | None) -> bool:
    """Whether loading copies this tensor into another form, instead of leaving it mapped."""
    return (
        (tensor.is_float and getattr(torch, FLOATS[tensor.dtype]) != dtype)
        or tensor.is_expert
        or is_quantized_while_loading(tensor, wanted)
    )


def fits_cpu_kernel(out_features: int, in_features: int) -> bool:
    """Whether the 4-bit kernel for CPUs takes a linear of this shape."""
    out_multiple, in_multiple = CPU_MULTIPLES
    return out_features % out_multiple == 0 and in_features % in_multiple == 0


def quantized_bytes(numel: int, wanted: Quantization) -> int:
    """Bytes of a linear's weight in memory, with its scales.

    In 4 bits 64 weights share one, of 16 bits in the order of the CPU's kernel and of little more
    than 8 elsewhere; in 8 bits a row has one, which is left out.
    """
    if wanted == "bnb-8bit":
        return numel
    return numel // 2 + numel // 32


@torch.inference_mode()
def pack_for_cpu(causal_lm: nn.Module, on_packed: Callable[[int], None]) -> None:
    """Brings 4-bit weights into the order of bitsandbytes' CPU kernel, where there is one.

    bitsandbytes does it in the first forward of each linear, which takes seconds: here, so that
    the first reply does not wait for it.

    Args:
        on_packed: is told the size that each weight had before it was quantized.
    """
    for module in causal_lm.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if isinstance(module, nn.Linear) and state is not None:
            module(torch.zeros(1, module.in_features, dtype=state.dtype))
            on_packed(module.in_features * module.out_features * state.dtype.itemsize)


def _unfit_for_cpu(config: Any) -> list[str]:
    """Linears of the layers whose shapes the CPU kernel rejects, by name; nothing is allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    unfit = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
            shape = module.weight.shape  # Conv1D, GPT-2's, holds it transposed
            out_in = shape if isinstance(module, nn.Linear) else reversed(shape)
            if not fits_cpu_kernel(*out_in):
                unfit.append(name)
    return unfit


def stored_bytes(parameter: nn.Parameter) -> int:
    """Bytes of a weight as stored, with the scales of a 4-bit one."""
    total = parameter.nbytes
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        total += state.absmax.nbytes
        if getattr(state, "state2", None) is not None:  # gone in the order of the CPU's kernel
            total += state.state2.absmax.nbytes
    return total
