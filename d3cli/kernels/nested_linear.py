"""A linear as two planes of 4 bits, of which the low one may be left out: decay in bits.

The `high` plane is the weight in 4 bits; the `low` plane is what that leaves of it, in 4 bits too.
Both together have the quality of 8 bits, and both run on torch's own kernel (`int4_linear`), so
leaving `low` out reads about half the bytes. Knows nothing of layers or schedules: `low_rows` says
how many positions get the low plane.
"""

from typing import Self

import torch
from torch import Tensor, nn

from d3cli.kernels.int4_linear import FourBitLinear
from d3cli.kernels.int4_rounding import Groups, round_to_groups

# Weights of each plane that share a scale.
HIGH_GROUP, LOW_GROUP = 32, 64


class NestedLinear(nn.Module):
    """A linear whose weight is the sum of two planes of 4 bits.

    Args:
        high, low: planes of the same shape, without bias.
        bias: ``[out]``.

    Attributes:
        low_rows: how many of the leading positions (the last dimension but one) get the low plane;
            None is all of them.

    Raises:
        ValueError: the planes differ in shape.
    """

    def __init__(self, high: FourBitLinear, low: FourBitLinear, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = high.out_features, high.in_features
        if (low.out_features, low.in_features) != (self.out_features, self.in_features):
            raise ValueError("the planes of a linear must have one shape")
        self.high, self.low, self.bias = high, low, bias
        self.low_rows: int | None = None

    @classmethod
    def rounded(cls, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> Self:
        """From a weight ``[out, in]`` in any float dtype."""
        high = FourBitLinear.rounded(weight, None, dtype, HIGH_GROUP)

        def encode(part: slice) -> Groups:
            rest = weight[part].float() - high.dequantized(part)
            return round_to_groups(rest, LOW_GROUP, dtype)

        shape = (weight.shape[0], weight.shape[1])
        return cls(high, FourBitLinear(shape, encode, None, dtype, LOW_GROUP), bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., S, in]`` to ``[..., S, out]``."""
        positions = hidden.shape[-2] if hidden.dim() > 1 else 1
        rows = positions if self.low_rows is None else min(self.low_rows, positions)
        output: Tensor = self.high(hidden)
        if rows == positions:
            output = output + self.low(hidden)
        elif rows:
            output[..., :rows, :] += self.low(hidden[..., :rows, :])
        return output if self.bias is None else output + self.bias

    def dequantized(self, low: bool = True) -> Tensor:
        """The weights that both planes, or only the high one, stand for: ``[out, in]`` float32."""
        weight = self.high.dequantized()
        return weight + self.low.dequantized() if low else weight

    @property
    def high_bytes(self) -> int:
        """Bytes that a token reads without the low plane."""
        return _bytes(self.high) + (0 if self.bias is None else self.bias.nbytes)

    @property
    def low_bytes(self) -> int:
        """Bytes that the low plane adds."""
        return _bytes(self.low)


def nested_linears(module: nn.Module) -> list[NestedLinear]:
    """The different nested linears in a module, such as an attention or an MLP.

    Linears that are one product (`joint_linear`) are one nested linear.
    """
    return [found for found in module.modules() if isinstance(found, NestedLinear)]


def _bytes(plane: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in plane.parameters())
