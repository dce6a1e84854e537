"""Which kernels a loaded model runs: read off its linears, for traces and benchmarks."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from d3cli.kernels.float_linear import FloatLinear
from d3cli.kernels.int4_linear import FourBitLinear
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.nested_linear import NestedLinear, nested_linears
from d3cli.kernels.plan import Kernel

_BY_CLASS: dict[type, Kernel] = {
    nn.Linear: Kernel.TORCH,
    Conv1D: Kernel.TORCH,
    EightBitLinear: Kernel.TORCH_INT8,
    FourBitLinear: Kernel.TORCH_INT4,
    NestedLinear: Kernel.TORCH_NESTED,
}
# bitsandbytes is not imported for this.
_BY_NAME = {"Linear4bit": Kernel.BNB_NF4, "Linear8bitLt": Kernel.BNB_INT8}


def kernels_used(model: nn.Module) -> dict[str, str]:
    """The kernels of a decode step by the shape of the weight: ``{"8192 x 2048": "torch"}``.

    Two kernels for one shape are joined with "and". Experts are not listed.
    """
    found: dict[str, set[str]] = {}
    planes = {part for nested in nested_linears(model) for part in nested.children()}
    for module in model.modules():
        kernel = _kernel_of(module)
        if kernel and module not in planes:
            found.setdefault(_shape(module), set()).add(kernel)
    return {shape: " and ".join(sorted(kernels)) for shape, kernels in sorted(found.items())}


def _kernel_of(module: nn.Module) -> str | None:
    if isinstance(module, FloatLinear):
        return module.products.summary
    if isinstance(module, EightBitLinear) and module.is_packed:
        return Kernel.ONEDNN_INT8
    return _BY_CLASS.get(type(module)) or _BY_NAME.get(type(module).__name__)


def _shape(linear: Any) -> str:
    if isinstance(linear, Conv1D):
        return f"{linear.nf} x {linear.nx}"
    return f"{linear.out_features} x {linear.in_features}"
