"""Linears that read the same input, as one product.

A product of one token costs some microseconds beside reading its weights, and on several threads
the time until the last of them is done. So queries, keys and values are one product, and so are the
two of a gated MLP. Each linear's place in the model is taken by a `LinearPart`, so that
transformers' layers work as before: the first part that is called multiplies for all.

Weights that loading copies anyway are joined, and plain ones if they are small. Larger plain ones
stay mapped from their file. Knows nothing of files or depth.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d3cli.kernels.float_linear import (
    FloatLinear,
    is_plain,
    joined_names,
    place_head,
    place_linears,
)
from d3cli.kernels.int4_linear import BLOCK, FourBitLinear
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.nested_linear import PLANES, NestedLinear
from d3cli.kernels.plan import KernelPlan
from d3cli.kernels.process import trim_memory

# The parameters of linears in fewer bits, which have a row or a column for each output.
_HELD: dict[type, tuple[str, ...]] = {
    EightBitLinear: ("weight", "scales", "bias"),
    FourBitLinear: ("weight", "scales_and_zeros", "bias"),
    NestedLinear: ("bias",),
}


class JointLinear(nn.Module):
    """The product of several linears.

    Args:
        product: the linear ``[..., in]`` to ``[..., sum of sizes]``.
        sizes: the outputs of each part.
    """

    def __init__(self, product: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.product = product
        self.sizes = tuple(sizes)
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}  # those that no part has taken yet

    def forward(self, hidden: Tensor) -> Tensor:
        """All outputs, one part after the other."""
        output: Tensor = self.product(hidden)
        return output

    def take(self, number: int, hidden: Tensor) -> Tensor:
        """The outputs of one part, a view. Those of the others are kept for the same input."""
        if self._input is not hidden or number not in self._outputs:
            self._outputs = dict(
                enumerate(self.product(hidden).split_with_sizes(self.sizes, dim=-1))
            )
            self._input = hidden
        taken = self._outputs.pop(number)
        if not self._outputs:
            self._input = None
        return taken


class LinearPart(nn.Module):
    """One of the linears of a `JointLinear`, by its number."""

    def __init__(self, joint: JointLinear, number: int, in_features: int) -> None:
        super().__init__()
        self.joint, self.number = joint, number
        self.in_features, self.out_features = in_features, joint.sizes[number]

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return self.joint.take(self.number, hidden)


def joint_of(parts: Sequence[Any]) -> JointLinear | None:
    """What multiplies for these linears, if it multiplies for them alone and in this order."""
    if not all(isinstance(part, LinearPart) for part in parts):
        return None
    joint: JointLinear = parts[0].joint
    found = [(id(part.joint), part.number) for part in parts]
    return joint if found == [(id(joint), number) for number in range(len(joint.sizes))] else None


def place_and_join(
    causal_lm: Any,
    plan: KernelPlan,
    read: Callable[[Tensor], Tensor],
    on_packed: Callable[[int], None],
) -> None:
    """Gives all bfloat16 linears the products of the plan; see `place_linears`."""
    place_head(causal_lm, plan, read, on_packed)
    join_linears(causal_lm, plan, read, on_packed)
    place_linears(causal_lm, plan, read, on_packed)


@torch.inference_mode()
def join_linears(
    causal_lm: Any,
    plan: KernelPlan,
    read: Callable[[Tensor], Tensor],
    on_packed: Callable[[int], None],
) -> None:
    """Joins bfloat16 linears as the plan says; arguments as in `place_linears`."""
    for parent, names in joined_names(causal_lm):
        parts = [getattr(parent, name) for name in names]
        if not all(map(is_plain, parts)):
            continue
        in_features, sizes = parts[0].in_features, [part.out_features for part in parts]
        if plan.float_products is None or not plan.joins(sum(sizes), in_features):
            continue
        weight = torch.empty(sum(sizes), in_features, dtype=torch.bfloat16)
        for part, rows in zip(parts, weight.split_with_sizes(sizes), strict=True):
            rows.copy_(read(part.weight.detach()))
        products = plan.products_of(sum(sizes), in_features)
        joined = FloatLinear(weight, _joined(parts, "bias"), products)
        _replace(parent, names, joined, sizes)
        on_packed(weight.nbytes)


@torch.inference_mode()
def join_quantized(causal_lm: Any) -> None:
    """Joins linears in fewer bits. Each output has codes and scales of its own, so they stay."""
    for parent, names in joined_names(causal_lm):
        parts = [getattr(parent, name) for name in names]
        if _can_be_joined(parts):
            sizes = [part.out_features for part in parts]
            _replace(parent, names, _join_codes(parts), sizes)
            del parts
            trim_memory()  # the parts' memory has gaps, which the next joint would not fit


def _can_be_joined(parts: Sequence[Any]) -> bool:
    kinds = {(type(part), getattr(part, "bias", None) is None) for part in parts}
    if len(kinds) > 1 or type(parts[0]) not in _HELD:
        return False
    # The 4-bit kernel stores outputs in blocks, and only the last one may be shorter.
    in_blocks = isinstance(parts[0], (FourBitLinear, NestedLinear))
    return not (in_blocks and any(part.out_features % BLOCK for part in parts[:-1]))


def _join_codes(parts: Sequence[Any]) -> Any:
    """The first of some linears of one kind, with the outputs of all."""
    product = parts[0]
    if isinstance(product, NestedLinear):
        for plane in PLANES:
            _join_codes([getattr(part, plane) for part in parts])
    joined = {name: _joined(parts, name) for name in _HELD[type(product)]}
    for name, parameter in joined.items():
        setattr(product, name, parameter)
    product.out_features = sum(part.out_features for part in parts)
    return product


def _joined(parts: Sequence[Any], name: str) -> nn.Parameter | None:
    """A parameter of all parts, along their outputs."""
    held = [getattr(part, name) for part in parts]
    if held[0] is None:
        return None
    joined = torch.cat(held, dim=1 if name == "scales_and_zeros" else 0)
    return nn.Parameter(joined, requires_grad=False)


def _replace(parent: Any, names: Sequence[str], product: Any, sizes: Sequence[int]) -> None:
    joint = JointLinear(product, sizes)
    for number, name in enumerate(names):
        part = LinearPart(joint, number, product.in_features)
        setattr(parent, name, part.train(parent.training))
