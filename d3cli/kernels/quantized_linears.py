"""Puts the linears of a model's layers into fewer bits, one by one, for torch's own kernels.

Knows nothing of files.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from d3cli.kernels.device import product_dtype
from d3cli.kernels.int4_linear import FourBitLinear
from d3cli.kernels.int4_rounding import Groups
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.measure_small import Kind
from d3cli.kernels.nested_linear import NestedLinear
from d3cli.kernels.plan import Kernel, KernelPlan
from d3cli.kernels.scratch import WEIGHTS

IN_LAYER = re.compile(r"\.\d+\.")


Read = Callable[[Tensor], Tensor]
ReadGroups = Callable[[Tensor], Callable[[slice], Groups] | None]
Small = FourBitLinear | NestedLinear | EightBitLinear
# The most rows that torch's kernel multiplies, for a kind and a shape; None if not measured.
RowsOf = Callable[[Kind, int, int], int | None]
_KINDS: dict[type, Kind] = {
    EightBitLinear: "int8",
    FourBitLinear: "int4",
    NestedLinear: "nested",
}


@torch.inference_mode()
def quantize_linears(
    causal_lm: Any, plan: KernelPlan, read: Read, groups: ReadGroups, ids: Sequence[int]
) -> list[str]:
    """Replaces the linears of the layers; returns the names of those whose shapes do not fit.

    Args:
        read: returns the values of a weight, in memory that is freed with the result.
        groups: returns what reads rows of a weight that is stored in 4 bits; None for others.
        ids: tokens of a text. The model reads it meanwhile if weights are rounded for inputs.
    """
    waiting = {
        name: _Waiting(module, plan, read, groups)
        for name, module in causal_lm.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and IN_LAYER.search(f".{name}")
    }
    for linear in waiting.values():
        linear.keep_stored_bits()
    if plan.rounds_for_inputs and ids and any(linear.is_waiting for linear in waiting.values()):
        for name, linear in waiting.items():
            causal_lm.set_submodule(name, linear)
        causal_lm.base_model(torch.tensor([list(ids)]), use_cache=False)
    for name, linear in waiting.items():
        causal_lm.set_submodule(name, linear.quantized())
    return [name for name, linear in waiting.items() if not linear.fits]


class _Waiting(nn.Module):
    """A linear that is quantized when it is called first, for the inputs that it gets then.

    One pass over a text so quantizes a whole model, and reads one weight at a time. It multiplies
    the weights as they were: unpacking them again would take longer.

    Attributes:
        fits: whether the kernel takes its shape.
    """

    def __init__(self, linear: Any, plan: KernelPlan, read: Read, groups: ReadGroups) -> None:
        super().__init__()
        self._linear, self._plan, self._read, self._groups = linear, plan, read, groups
        self._small: Small | None = None
        # GPT-2's Conv1D stores it as [in, out].
        shape = linear.weight.shape
        self._is_transposed = isinstance(linear, Conv1D)
        self._shape = tuple(reversed(shape) if self._is_transposed else shape)
        self.fits = plan.of_linear(*self._shape) is plan.quantized

    @property
    def is_waiting(self) -> bool:
        """Whether it is still to be quantized."""
        return self.fits and self._small is None

    def keep_stored_bits(self) -> None:
        """Quantizes it now if the plan is int4 and its file holds 4 bits: they stay as they are."""
        if not self.fits or self._plan.quantized is not Kernel.TORCH_INT4:
            return
        stored = self._groups(self._linear.weight.detach())
        if stored is not None:
            dtype = self._linear.weight.dtype
            self._keep(FourBitLinear(self._shape, stored, self._linear.bias, dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        if self._small is not None:
            found: Tensor = self._small(hidden)
            return found
        values, bias = self._values(), self._linear.bias
        if self.fits:
            importance = hidden.reshape(-1, hidden.shape[-1]).float().square().mean(dim=0)
            self._keep(self._rounded(values, importance))
        return _product(hidden, values, bias)

    def quantized(self) -> nn.Module:
        """It in fewer bits, or as it was if it does not fit."""
        if self.is_waiting:
            self._keep(self._rounded(self._values()))
        return self._linear if self._small is None else self._small

    def _keep(self, small: Small) -> None:
        self._small = small.train(self._linear.training)
        self._linear = None  # frees its weight

    def _rounded(self, values: Tensor, importance: Tensor | None = None) -> Small:
        bias, dtype = self._linear.bias, self._linear.weight.dtype
        if self._plan.quantized is Kernel.TORCH_INT4:
            return FourBitLinear.rounded(values, bias, dtype, importance=importance)
        if self._plan.quantized is Kernel.TORCH_NESTED:
            return NestedLinear.rounded(values, bias, dtype, importance)
        return EightBitLinear(values, bias, dtype=dtype)

    def _values(self) -> Tensor:
        """The weight ``[out, in]``."""
        values = self._read(self._linear.weight.detach())
        return values.T if self._is_transposed else values


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[..., in]`` to ``[..., out]``, by a weight ``[out, in]`` of any float dtype."""
    dtype = product_dtype(hidden.dtype)
    rows = hidden.to(dtype)
    # Copies of few weights at a time, since those of all could be the peak of memory.
    parts = torch.split(weight, max(1, WEIGHTS // weight.shape[1]))
    output = torch.cat([functional.linear(rows, part.to(dtype)) for part in parts], dim=-1)
    return (output if bias is None else output + bias.to(dtype)).to(hidden.dtype)


def use_measured(
    causal_lm: nn.Module, rows_of: RowsOf, is_packed: Callable[[int, int], bool]
) -> None:
    """Gives linears in fewer bits, joined or not, what was measured to be the fastest for them.

    Args:
        rows_of: the most rows that torch's kernel multiplies.
        is_packed: whether int8 weights ``[out, in]`` are packed.
    """
    for module in causal_lm.modules():
        kind = _KINDS.get(type(module))
        if kind is not None:
            small: Any = module
            shape = small.out_features, small.in_features
            rows = rows_of(kind, *shape)
            small.kernel_rows = small.kernel_rows if rows is None else rows
            if kind == "int8" and is_packed(*shape):
                small.pack()
