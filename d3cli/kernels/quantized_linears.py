"""Puts the linears of a model's layers into fewer bits, one by one, for torch's own kernels.

Knows nothing of files.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from d3cli.kernels.int4_linear import FourBitLinear
from d3cli.kernels.int4_rounding import Groups
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.nested_linear import NestedLinear
from d3cli.kernels.plan import Kernel, KernelPlan

IN_LAYER = re.compile(r"\.\d+\.")


Read = Callable[[Tensor], Tensor]
ReadGroups = Callable[[Tensor], Callable[[slice], Groups] | None]


@torch.inference_mode()
def quantize_linears(causal_lm: Any, plan: KernelPlan, read: Read, groups: ReadGroups) -> list[str]:
    """Replaces the linears of the layers; returns the names of those whose shapes do not fit.

    Args:
        read: returns the values of a weight, in memory that is freed with the result.
        groups: returns what reads rows of a weight that is stored in 4 bits; None for others.
    """
    found = [
        (name, module)
        for name, module in causal_lm.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and IN_LAYER.search(f".{name}")
    ]
    unfit = []
    while found:
        name, linear = found.pop(0)
        small = _quantized(linear, plan, read, groups)
        if small is None:
            unfit.append(name)
        else:
            causal_lm.set_submodule(name, small.train(linear.training))
    return unfit


def _quantized(
    linear: Any, plan: KernelPlan, read: Read, groups: ReadGroups
) -> FourBitLinear | NestedLinear | EightBitLinear | None:
    """A linear in fewer bits; None if the kernel does not take its shape."""
    weight = linear.weight.detach()
    is_transposed = isinstance(linear, Conv1D)  # GPT-2's, [in, out]
    shape = weight.shape[::-1] if is_transposed else weight.shape
    kernel, dtype = plan.of_linear(*shape), weight.dtype
    if kernel is not plan.quantized:
        return None
    if kernel is Kernel.TORCH_INT4 and (stored := groups(weight)) is not None:
        return FourBitLinear(tuple(shape), stored, linear.bias, dtype)
    values = read(weight)
    values = values.T if is_transposed else values
    if kernel is Kernel.TORCH_INT4:
        return FourBitLinear.rounded(values, linear.bias, dtype)
    if kernel is Kernel.TORCH_NESTED:
        return NestedLinear.rounded(values, linear.bias, dtype)
    return EightBitLinear(values, linear.bias, dtype=dtype)
