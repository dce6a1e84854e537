"""Nested weights in models that tests build: in the gated model, and dequantized in its oracles."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from d3cli.kernels.int4_linear import FourBitLinear, fits_int4
from d3cli.kernels.nested_linear import NestedLinear

GROUP = 32  # small enough for the linears of tiny models
# Decode steps run on the kernel, as on machines where it is faster; prompts do not.
KERNEL_ROWS = 4


def nested_linear(weight: Tensor, bias: nn.Parameter | None) -> NestedLinear:
    """Both planes of a weight ``[out, in]``, in groups of 32."""
    high = FourBitLinear.rounded(weight, None, weight.dtype, GROUP)
    rest = weight - high.dequantized().to(weight.dtype)
    low = FourBitLinear.rounded(rest, None, weight.dtype, GROUP)
    high.kernel_rows = low.kernel_rows = KERNEL_ROWS
    return NestedLinear(high, low, bias)


@torch.no_grad()
def nest_linears(layers: nn.Module) -> dict[str, NestedLinear]:
    """Nests the linears in these layers that the kernel takes; returns them by their names."""
    nested = {}
    for name, linear in list(layers.named_modules()):
        if not isinstance(linear, nn.Linear | Conv1D):
            continue
        weight = _weight(linear)
        if fits_int4(*weight.shape):
            nested[name] = nested_linear(weight, linear.bias).eval()
            layers.set_submodule(name, nested[name])
    return nested


@torch.no_grad()
def dequantize(layers: nn.Module, nested: Mapping[str, NestedLinear]) -> dict[nn.Module, Tensor]:
    """Gives linears the weights of both planes; returns those of the high plane, ``[out, in]``."""
    high = {}
    for name, planes in nested.items():
        linear = layers.get_submodule(name)
        _weight(linear).copy_(planes.dequantized())
        high[linear] = planes.high.dequantized()
    return high


def _weight(linear: Any) -> Tensor:
    """``[out, in]``"""
    weight: Tensor = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight
