"""Products with int8 weights on the processor's instructions for bytes, as exact as in bfloat16.

oneDNN multiplies bytes by int8 weights in its own order and sums in int32. Where the processor has
instructions for that (AVX-512 VNNI, AVX-VNNI, AMX), a product of one row takes about as long as
reading the weights, while torch's int8 kernel converts each weight to float32 and takes longer. But
activations are not bytes, and rounding them to bytes would change the model. So each activation is
written as a whole number with three digits to base 256, in parts of its row's largest value. Each
digit is multiplied as a row of its own, and the three results are added by their places. That is
Ozaki's way to exact products (Ozaki et al., Numerical Algorithms 59, 2012), here with whole numbers
(Ootomo, Ozaki and Yokota, arXiv 2306.11975). What remains is the result's own rounding.

Without such instructions oneDNN may add two products in 16 bits, which overflows, so whoever uses
this compares the results first (`measure_small`). Knows nothing of files or models.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DIGITS, BASE = 3, 256
# Digits are -128 to 127; oneDNN takes them as bytes with this zero.
ZERO = 128
_ZEROS = torch.tensor(float(ZERO * (1 + BASE + BASE**2)))
# The whole number of a row's largest value: below 127 at each place, with room for its rounding.
LARGEST = 8.35e6
# Two digits do for rows whose largest value is at most this many times their root mean square: they
# are then off by a quarter of bfloat16's own error.
FLAT = 32
# For so many rows or more, two digits are worth the look at the rows.
SEVERAL = 8
# More rows than these are multiplied in parts: of numbers to split, and of results of digits, both
# in float32. So parts of a prompt stay in the caches, and take little memory.
NUMBERS, RESULTS = 1 << 19, 1 << 23
_NO_ZERO = torch.zeros(1, dtype=torch.int64)  # of the weights


@dataclass(frozen=True, slots=True)
class PackedCodes:
    """Weights in oneDNN's order.

    Attributes:
        codes: an opaque tensor ``[in, out]`` of int8.
        scales: of each output, ``[out]`` float32: what one at the lowest place stands for, in a row
            whose largest value is 1.
    """

    codes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor) -> "PackedCodes":
        """A copy of int8 weights ``[out, in]`` with scales ``[out]``."""
        packed = torch.ops.onednn.qlinear_prepack(codes, [DIGITS, codes.shape[1]])
        return cls(packed, scales.float() / LARGEST)

    def unpacked(self) -> Tensor:
        """The int8 weights, ``[out, in]``."""
        return self.codes.to_dense().T

    def multiply(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Rows ``[M, in]`` times the weights: ``[M, out]`` in the dtype of the rows."""
        outputs = len(self.scales)
        most = max(SEVERAL, min(NUMBERS // rows.shape[-1], RESULTS // (DIGITS * outputs)))
        if len(rows) <= most:
            return self._multiply(rows, bias)
        found = rows.new_empty(len(rows), outputs)
        for start in range(0, len(rows), most):
            part = slice(start, start + most)
            found[part] = self._multiply(rows[part], bias)
        return found

    def _multiply(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        digits, largest = _split(rows)
        found = torch.ops.onednn.qlinear_pointwise(
            digits.flatten(0, 1), 1.0, ZERO, self.codes, self.scales, _NO_ZERO,
            None, 1.0, 0, torch.float32, "none", [], "",
        ).view(len(digits), len(rows), len(self.scales))  # fmt: skip
        sums = found[-1]
        for place in range(len(digits) - 2, -1, -1):
            sums = torch.add(found[place], sums, alpha=BASE)
        sums = sums.mul_(largest) if bias is None else torch.addcmul(bias, sums, largest)
        return sums.to(rows.dtype)


def _split(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[M, in]`` as digits ``[places, M, in]``, the lowest place first, as bytes.

    Also returns each row's largest absolute value, ``[M, 1]`` float32, times the value of the
    lowest place. The digits of a row of zeros mean nothing, and neither do those of a row with an
    infinite value: that largest value makes its results zero, or not finite.
    """
    # Not as a norm of order infinity, which takes torch ten times as long.
    largest = rows.abs().amax(dim=-1, keepdim=True).float()
    # In float32, the sum has no fraction for most values; conversion cuts off what others have.
    whole = torch.addcdiv(_ZEROS, rows, largest, value=LARGEST).to(torch.int32)
    left_out = int(len(rows) >= SEVERAL and _are_flat(rows, largest))
    if left_out:
        whole += BASE // 2  # so that cutting off the lowest digit rounds
        largest = largest * BASE
    places = whole.view(torch.uint8).view(*rows.shape, 4)[..., left_out:DIGITS]
    return places.permute(2, 0, 1).contiguous(), largest


def _are_flat(rows: Tensor, largest: Tensor) -> bool:
    """Whether no row has a value that is far larger than most."""
    size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
    return bool((largest <= size * (FLAT / rows.shape[-1] ** 0.5)).all())
