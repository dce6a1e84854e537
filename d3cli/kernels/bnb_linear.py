"""4-bit and 8-bit weights by bitsandbytes, which is imported only if they are needed.

NF4 with double quantization and a 16-bit compute dtype (Dettmers et al., arXiv 2305.14314), and
LLM.int8() (arXiv 2208.07339). Knows nothing of files or depth.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from d3cli.base.errors import ModelError, Setting

Quantization = Literal["bnb-4bit", "bnb-8bit"]

# bitsandbytes' 4-bit CPU kernel asserts that these divide out_features and in_features.
CPU_MULTIPLES = (32, 64)


def check_quantization(name: str, stored: Mapping[str, Any], wanted: Quantization | None) -> None:
    """Refuses a model that cannot be quantized, or is quantized already.

    Args:
        name: what to call the model in a message.
        stored: its config.json.
        wanted: the quantization asked for.

    Raises:
        ModelError: with the reason.
    """
    found = stored.get("quantization_config")
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method != "bitsandbytes":
            raise ModelError(
                f"{name} is quantized by {method or 'an unknown method'}, which d3 cannot read",
                ("get the same model in bfloat16, and use ", Setting("quantization", "bnb-4bit")),
            )
        kind = found.get("bnb_4bit_quant_type")
        if kind not in (None, "nf4", "fp4"):
            raise ModelError(
                f"{name} is quantized to {kind!r:.40}, which bitsandbytes does not know",
                "get the same model in bfloat16",
            )
        if wanted is not None:
            raise ModelError(
                f"{name} is already quantized", ("leave out ", Setting("quantization"))
            )
    if wanted is not None and stored.get("num_experts_per_tok") is not None:
        raise ModelError(
            f"{name} is a mixture of experts, and bitsandbytes does not quantize experts",
            ("quantizing it would save almost nothing: leave out ", Setting("quantization")),
        )


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
