"""The ways to store the linears of a model's layers in fewer bits, and which models can have them.

int8, int4 and nested run on torch's own kernels for CPUs, the others on bitsandbytes. Knows nothing
of files or depth.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from d3cli.base.errors import ModelError, Setting, UsageError, Words

Quantization = Literal["int8", "int4", "nested", "bnb-4bit", "bnb-8bit"]
OWN_KINDS = ("int8", "int4", "nested")  # without bitsandbytes


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
                ("get the same model in bfloat16, and use ", Setting("quantization", "int4")),
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
        who = "d3" if wanted in OWN_KINDS else "bitsandbytes"
        raise ModelError(
            f"{name} is a mixture of experts, and {who} does not quantize experts",
            ("quantizing it would save almost nothing: leave out ", Setting("quantization")),
        )


def check_hardware(wanted: Quantization | None, dtype: torch.dtype, device: torch.device) -> None:
    """Refuses a quantization whose kernels do not run on a device or in a dtype.

    Raises:
        UsageError: with what would run.
    """
    if wanted not in OWN_KINDS:
        return
    chosen = Setting("quantization", wanted)
    if device.type != "cpu":
        instead: Words = ("use ", Setting("quantization", _by_bitsandbytes(wanted)))
        raise UsageError(
            (chosen, f" runs on a CPU, not on {device}"), instead, field="quantization"
        )
    if dtype == torch.float16:
        raise UsageError(
            (chosen, " does not run in float16, whose range is too narrow for its scales"),
            ("use ", Setting("dtype", "bfloat16")),
            field="dtype",
        )


def _by_bitsandbytes(wanted: Quantization) -> Quantization:
    return "bnb-4bit" if wanted == "int4" else "bnb-8bit"
