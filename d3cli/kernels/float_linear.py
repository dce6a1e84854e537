"""Linears whose weights are not quantized, with the products that the kernel plan chose.

A decode step multiplies one token by every weight, so it takes as long as reading the weights.
``docs/performance.md`` has the figures. Knows nothing of files, layers or depth.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from d3cli.kernels.joint_shapes import JOINED
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


@torch.inference_mode()
def place_linears(
    model: Any,
    plan: KernelPlan,
    read: Callable[[Tensor], Tensor],
    on_packed: Callable[[int], None],
) -> None:
    """Gives a causal language model's bfloat16 linears the products of the plan, one by one.

    `joint_linear.place_and_join` calls it last.

    Args:
        read: returns a weight in pages of memory that are freed with it. Read through the model's
            own mapping, the pages of the file would stay in memory beside the packed copy.
        on_packed: is called with the size of each packed weight.
    """
    shapes = _product_shapes(model)
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if is_plain(child)
    ]
    while linears:
        parent, name, linear = linears.pop()
        products = plan.products_of(*shapes.get(id(linear), linear.weight.shape))
        _place(parent, name, linear, products, read, on_packed)


@torch.inference_mode()
def place_head(
    model: Any,
    plan: KernelPlan,
    read: Callable[[Tensor], Tensor],
    on_packed: Callable[[int], None],
) -> None:
    """As `place_linears`, for the LM head: the largest, while no other copy takes memory."""
    head = model.get_output_embeddings()
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is head and is_plain(child):
                products = plan.products_of(*child.weight.shape)
                return _place(parent, name, child, products, read, on_packed)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a bfloat16 linear as transformers makes it."""
    return type(module) is nn.Linear and module.weight.dtype == torch.bfloat16


def joined_names(model: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """Modules with linears that read the same input, and the names of these.

    Not one by one: a search that goes on would hold the linears that are replaced meanwhile.
    """
    return [
        (parent, names)
        for parent in model.modules()
        for names in JOINED
        if all(hasattr(parent, name) for name in names)
    ]


def _product_shapes(model: Any) -> dict[int, tuple[int, int]]:
    """The shapes of joint products, by the ids of the linears: the plan chooses for all at once."""
    found: dict[int, tuple[int, int]] = {}
    for parent, names in joined_names(model):
        parts = [getattr(parent, name) for name in names]
        outputs = sum(part.out_features for part in parts)
        found |= {id(part): (outputs, part.in_features) for part in parts}
    return found


def _place(
    parent: nn.Module,
    name: str,
    linear: Any,
    products: Products,
    read: Callable[[Tensor], Tensor],
    on_packed: Callable[[int], None],
) -> None:
    if products == Products():
        return
    weight = linear.weight
    placed = FloatLinear(
        read(weight.detach()) if products.packed else weight, linear.bias, products
    )
    setattr(parent, name, placed.train(linear.training))
    if products.packed:
        on_packed(weight.nbytes)
