"""A linear as two planes of 4 bits, of which the low one may be left out: decay in bits.

The `high` plane is the weight in 4 bits; the `low` plane is what that leaves of it, in 4 bits too.
Both together have the quality of 8 bits, and both run on torch's own kernel (`int4_linear`), so
leaving `low` out reads about half the bytes.

The kernel rounds each plane's product, so the sum is rounded twice. But weights are not rounded to
bfloat16 first, so its error against float64 equals that of a plain product with their sum: 1.00 of
it for one token, 1.08 where both planes are unpacked into one weight. A kernel call that adds the
low product before it rounds would be 0.71 (an input that is always one, with the low product as its
weights), but those weights would change with every call.

Knows nothing of layers or schedules: `low_rows` says how many positions get the low plane.
"""

from typing import Self

import torch
from torch import Tensor, nn

from d3cli.kernels.int4_linear import (
    FourBitLinear,
    fits_int4,
    int4_bytes,
    multiply_unpacked,
)
from d3cli.kernels.int4_rounding import Groups, round_to_groups

# Weights of a plane that share a scale: 4.5 bits each with bfloat16. See docs/performance.md.
GROUP = 64
# Of rows whose length has no such groups.
SMALL_GROUP = 32
PLANES = ("high", "low")


class NestedLinear(nn.Module):
    """A linear whose weight is the sum of two planes of 4 bits.

    Args:
        high, low: planes of the same shape, without bias.
        bias: ``[out]``.

    Attributes:
        kernel_rows: the most rows that the kernel multiplies; for more, weights are unpacked.
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
        self.kernel_rows = high.kernel_rows
        self.low_rows: int | None = None

    @classmethod
    def rounded(
        cls,
        weight: Tensor,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        importance: Tensor | None = None,
    ) -> Self:
        """From a weight ``[out, in]`` in any float dtype; `importance` as in `round_to_groups`."""
        shape = weight.shape[0], weight.shape[1]
        group = group_for(shape[1])
        high = FourBitLinear.rounded(weight, None, dtype, group, importance)

        def encode(part: slice) -> Groups:
            rest = weight[part].float() - high.dequantized(part)
            return round_to_groups(rest, group, dtype, importance=importance)

        return cls(high, FourBitLinear(shape, encode, None, dtype, group), bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., S, in]`` to ``[..., S, out]``."""
        positions = hidden.shape[-2] if hidden.dim() > 1 else 1
        rows = positions if self.low_rows is None else min(self.low_rows, positions)
        if rows == positions:
            return self._multiply(hidden, (self.high, self.low))
        if rows == 0:
            return self.without_low(hidden)
        both = self._multiply(hidden[..., :rows, :], (self.high, self.low))
        return torch.cat([both, self.without_low(hidden[..., rows:, :])], dim=-2)

    def without_low(self, hidden: Tensor) -> Tensor:
        """As `forward`, with the high plane alone."""
        return self._multiply(hidden, (self.high,))

    def _multiply(self, hidden: Tensor, planes: tuple[FourBitLinear, ...]) -> Tensor:
        """``[..., in]`` to ``[..., out]``, with the sum of some planes."""
        rows = hidden.reshape(hidden.numel() // self.in_features, self.in_features)
        if len(rows) > self.kernel_rows:
            output = multiply_unpacked(planes, rows, self.bias)
        else:
            output = planes[0].by_kernel(rows)
            added = [plane.by_kernel(rows) for plane in planes[1:]]
            added += [] if self.bias is None else [self.bias]
            # A sum of three is in float32, so that it is rounded once. So is one of two, by torch.
            total = output.float() if len(added) > 1 else output
            output = sum(added, total).to(rows.dtype)
        return output.reshape(*hidden.shape[:-1], self.out_features)

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


def group_for(in_features: int) -> int:
    """How many weights of a row share a scale, in either plane."""
    return GROUP if in_features % GROUP == 0 else SMALL_GROUP


def fits_nested(out_features: int, in_features: int) -> bool:
    """Whether the kernel takes the planes of a linear of this shape."""
    return fits_int4(out_features, in_features)


def nested_bytes(out_features: int, in_features: int, dtype: torch.dtype) -> int:
    """Bytes of a `NestedLinear` without bias."""
    return 2 * int4_bytes(out_features, in_features, dtype, group_for(in_features))


def _bytes(plane: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in plane.parameters())
