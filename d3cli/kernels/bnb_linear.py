"""4-bit and 8-bit weights by bitsandbytes, which is imported only if they are needed.

NF4 with double quantization and a 16-bit compute dtype (Dettmers et al., arXiv 2305.14314), and
LLM.int8() (arXiv 2208.07339). Knows nothing of files or depth.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from d3cli.kernels.quantization import Quantization

# bitsandbytes' 4-bit CPU kernel asserts that these divide out_features and in_features.
CPU_MULTIPLES = (32, 64)


def quantization_config(
    wanted: Quantization, dtype: torch.dtype, unfit: Sequence[str] = ()
) -> BitsAndBytesConfig:
    """The settings with which transformers quantizes a model's layers, but not its LM head.

    Args:
        dtype: the dtype in which 4-bit weights are multiplied.
        unfit: names of linears that stay in `dtype`.
    """
    if wanted == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,  # without it, saving after a forward corrupts weights
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "embed_out", *unfit],
    )


def fits_cpu_kernel(out_features: int, in_features: int) -> bool:
    """Whether the 4-bit CPU kernel takes a linear of this shape."""
    out_multiple, in_multiple = CPU_MULTIPLES
    return out_features % out_multiple == 0 and in_features % in_multiple == 0


def bnb_is_fast() -> bool:
    """Whether this processor has what the 4-bit CPU kernel needs."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def quantized_bytes(numel: int, wanted: Quantization) -> int:
    """Bytes of a quantized weight in memory, with its scales.

    In 4 bits, 64 weights share a scale. It has 16 bits on a CPU and little more than 8 elsewhere;
    16 are counted. In 8 bits, a row has one scale, which is not counted.
    """
    if wanted == "bnb-8bit":
        return numel
    return numel // 2 + numel // 32


@torch.inference_mode()
def pack_for_cpu(causal_lm: nn.Module, on_packed: Callable[[int], None]) -> None:
    """Reorders 4-bit weights for bitsandbytes' CPU kernel, if this processor has it.

    bitsandbytes does this in the first forward of each linear, which takes seconds. Running such a
    forward here keeps the first reply from waiting for it.

    Args:
        on_packed: is called with the size that each weight had before it was quantized.
    """
    for module in causal_lm.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if isinstance(module, nn.Linear) and state is not None:
            module(torch.zeros(1, module.in_features, dtype=state.dtype))
            on_packed(module.in_features * module.out_features * state.dtype.itemsize)


def stored_bytes(parameter: nn.Parameter) -> int:
    """Bytes of a weight as stored, including the scales of a 4-bit weight."""
    total = parameter.nbytes
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        total += state.absmax.nbytes
        if getattr(state, "state2", None) is not None:  # the CPU kernel has none
            total += state.state2.absmax.nbytes
    return total
