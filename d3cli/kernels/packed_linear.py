"""bfloat16 linears whose weights are stored in the order that the processor's kernel reads fastest.

A decode step multiplies one token by every weight, so it takes as long as reading the weights.
`F.linear` on rows in the order of a file reaches half of the memory's bandwidth. oneDNN's kernel on
blocks in its own order comes near all of it, and multiplies a prompt no slower. The blocks are a
copy: weights are read, packed and freed one by one. ``docs/performance.md`` has the figures. Knows
nothing of layers or depth.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# For one row, oneDNN's kernel adds up in few registers, which wait for each other. Four equal rows
# keep it busy and still read the weights once. Weights that fit into a cache gain nothing.
ROWS, LARGE = 4, 1 << 20


class PackedLinear(nn.Linear):
    """A bfloat16 linear whose weight is an opaque tensor ``[out, in]`` in oneDNN's order.

    Args:
        weight: ``[out, in]``, as in `nn.Linear`.
        bias: ``[out]``.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name
        if input.numel() != self.in_features or self.in_features * self.out_features < LARGE:
            return self._multiply(input)
        rows = input.reshape(1, -1).expand(ROWS, -1)
        return self._multiply(rows)[0].reshape(*input.shape[:-1], -1)

    def _multiply(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self.weight, self.bias, "none", [], ""
        )
        return found


@torch.inference_mode()
def pack_linears(
    model: Any,
    read: Callable[[Tensor], Tensor],
    on_packed: Callable[[int], None],
) -> None:
    """Replaces a causal language model's bfloat16 linears, one by one.

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
        packed = PackedLinear(read(linear.weight.detach()), linear.bias)
        setattr(parent, name, packed.train(linear.training))
        on_packed(linear.weight.nbytes)
