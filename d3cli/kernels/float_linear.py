"""Linears whose weights are not quantized, with the products that the kernel plan chose.

A decode step multiplies one token by every weight, so it takes as long as reading the weights.
``docs/performance.md`` has the figures. Knows nothing of files, layers or depth.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from d3cli.kernels.plan import KernelPlan
from d3cli.kernels.products import Product, Products, pack


class FloatLinear(nn.Linear):
    """A bfloat16 linear that chooses its product by the number of rows.

    Args:
        weight: ``[out, in]``; kept as it is, or copied into oneDNN's order.
        bias: ``[out]``.
        products: what multiplies.

    Attributes:
        weight: the same parameter, or an opaque tensor ``[out, in]`` in oneDNN's order.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, products: Products) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.products = products
        if products.packed:
            weight = nn.Parameter(pack(weight), requires_grad=False)
        elif not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight, requires_grad=False)
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name
        """``[..., in]`` to ``[..., out]``."""
        count = input.numel() // self.in_features
        product = self.products.for_rows(count)
        if product is Product.LINEAR:
            return super().forward(input)
        rows = input.reshape(count, self.in_features)
        found = product.multiply(rows, self.weight, self.bias)
        return found.reshape(*input.shape[:-1], self.out_features)


def make_linear(weight: Tensor, bias: nn.Parameter | None, plan: KernelPlan) -> FloatLinear:
    """A linear with the plan's products for its shape.

    Args:
        weight: ``[out, in]``. A packed linear holds a copy, so let go of this one.
    """
    return FloatLinear(weight, bias, plan.products_of(*weight.shape))


@torch.inference_mode()
def place_linears(
    model: Any,
    plan: KernelPlan,
    read: Callable[[Tensor], Tensor],
    on_packed: Callable[[int], None],
) -> None:
    """Gives a causal language model's bfloat16 linears the products of the plan, one by one.

    Args:
        read: returns a weight in pages of memory that are freed with it. Read through the model's
            own mapping, the pages of the file would stay in memory beside the packed copy.
        on_packed: is called with the size of each packed weight.
    """
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16
    ]
    # The LM head is the largest, so it comes first, while no other copy takes memory.
    head = model.get_output_embeddings()
    linears.sort(key=lambda found: found[2] is head)
    while linears:
        parent, name, linear = linears.pop()
        products = plan.products_of(linear.out_features, linear.in_features)
        if products == Products():
            continue
        weight = linear.weight
        placed = FloatLinear(
            read(weight.detach()) if products.packed else weight, linear.bias, products
        )
        setattr(parent, name, placed.train(linear.training))
        if products.packed:
            on_packed(weight.nbytes)
