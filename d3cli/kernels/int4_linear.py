"""A linear in 4 bits on torch's own kernel for CPUs, which needs no special instructions.

Weights are rounded in groups along the inputs (`int4_rounding`) and stored in the order in which
the kernel reads them. That order depends on the processor's vector instructions, so it is found by
a probe: many tokens are multiplied by weights that are unpacked again, block by block. Knows
nothing of layers or depth.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Self

import torch
from torch import Tensor, nn

from d3cli.kernels.device import product_dtype
from d3cli.kernels.int4_rounding import CENTER, Groups, round_to_groups
from d3cli.kernels.row_threads import share_rows
from d3cli.kernels.scratch import WEIGHTS, scratch, usual_rows

# The kernel's blocks of outputs are at most this long; the last ones may be shorter.
BLOCK = 64
OUT_MULTIPLE = 16
# Weights that share a scale. Groups of 64 would save a tenth of the bytes, but a small model would
# lose almost twice as much quality; and GGUF's own 4-bit blocks have 32 weights.
GROUP = 32
# Weights that are packed at once.
CHUNK = 1 << 18
# The most rows for which the kernel is faster than unpacking the weights, unless it was measured.
FEW = 64


def fits_int4(out_features: int, in_features: int) -> bool:
    """Whether the kernel takes a linear of this shape."""
    return out_features % OUT_MULTIPLE == 0 and in_features % GROUP == 0


def int4_bytes(out_features: int, in_features: int, dtype: torch.dtype, group: int = GROUP) -> int:
    """Bytes of a `FourBitLinear` without bias: codes, and two numbers for each group."""
    numel = out_features * in_features
    return numel // 2 + 2 * dtype.itemsize * (numel // group)


class FourBitLinear(nn.Module):
    """A linear with weights in 4 bits.

    Args:
        shape: ``(out, in)``.
        encode: returns the rows of a slice in 4 bits, with scales and zeros in `dtype`. Several
            threads call it at once.
        bias: ``[out]``.
        dtype: of the activations.
        group: weights that share a scale: 32, 64, 128 or 256.

    Attributes:
        weight: the codes in the kernel's order, uint8 ``[out, in / 2]``.
        scales_and_zeros: ``[in / group, out, 2]``, in the dtype of the activations.
        kernel_rows: the most rows that the kernel multiplies; for more, weights are unpacked.

    Raises:
        ValueError: the kernel does not take this shape.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        encode: Callable[[slice], Groups],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        group: int = GROUP,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        if self.out_features % OUT_MULTIPLE or self.in_features % group:
            raise ValueError(f"the 4-bit kernel does not take {shape}")
        self.group = group
        packed = torch.empty(self.out_features, self.in_features // 2, dtype=torch.uint8)
        scales_and_zeros = torch.empty(self.in_features // group, self.out_features, 2, dtype=dtype)
        rows = BLOCK * max(1, CHUNK // (BLOCK * self.in_features))

        def fill(part: slice) -> None:
            for start in range(part.start, part.stop, rows):
                some = slice(start, min(start + rows, part.stop))
                groups = encode(some)
                packed[some] = pack_codes(groups.codes)
                scales_and_zeros[:, some, 0] = groups.scales.T
                scales_and_zeros[:, some, 1] = groups.zeros.T

        share_rows(self.out_features, BLOCK, fill)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.scales_and_zeros = nn.Parameter(scales_and_zeros, requires_grad=False)
        self.bias = bias
        self.kernel_rows = usual_rows(dtype, FEW)

    @classmethod
    def rounded(
        cls,
        weight: Tensor,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        group: int = GROUP,
        importance: Tensor | None = None,
    ) -> Self:
        """From a weight ``[out, in]`` in any float dtype; `importance` as in `round_to_groups`."""

        def encode(part: slice) -> Groups:
            return round_to_groups(weight[part], group, dtype, importance=importance)

        return cls((weight.shape[0], weight.shape[1]), encode, bias, dtype, group)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        rows = hidden.reshape(hidden.numel() // self.in_features, self.in_features)
        if len(rows) <= self.kernel_rows:
            output = self.by_kernel(rows)
        else:
            output = multiply_unpacked([self], rows, self.bias)
        return output.reshape(*hidden.shape[:-1], self.out_features)

    def by_kernel(self, rows: Tensor) -> Tensor:
        """``[M, in]`` to ``[M, out]`` on torch's own kernel."""
        output: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.contiguous(), self.weight, self.group, self.scales_and_zeros
        )
        return output if self.bias is None else output + self.bias

    def dequantized(self, outputs: slice = slice(None)) -> Tensor:
        """The weights that the codes stand for, ``[out, in]`` float32.

        Args:
            outputs: some of them; the slice starts and ends at multiples of `BLOCK`, or at the end.
        """
        first, last, _ = outputs.indices(self.out_features)
        weight = torch.empty(last - first, self.in_features)
        for part, block in _unpacked([self], torch.float32, outputs):
            weight[part.start - first : part.stop - first] = block.T
        return weight


def multiply_unpacked(planes: Sequence[FourBitLinear], rows: Tensor, bias: Tensor | None) -> Tensor:
    """The product with the sum of some weights of one shape, which are unpacked first.

    Args:
        planes: the one with the largest weights comes first.
        rows: ``[M, in]``.
        bias: ``[out]``.

    Returns:
        ``[M, out]``.
    """
    output = rows.new_empty(len(rows), planes[0].out_features)
    dtype = product_dtype(rows.dtype)
    rows = rows.to(dtype)
    for part, block in _unpacked(planes, dtype):
        if bias is None:
            output[:, part] = rows @ block
        else:  # in one operation, which rounds once
            output[:, part] = torch.addmm(bias[part].to(dtype), rows, block)
    return output


def _unpacked(
    planes: Sequence[FourBitLinear], dtype: torch.dtype, outputs: slice = slice(None)
) -> Iterator[tuple[slice, Tensor]]:
    """Some outputs, and their weights ``[in, n]``, which the next ones overwrite."""
    first, last, _ = outputs.indices(planes[0].out_features)
    size = block_size()
    whole = last - last % size
    step = size * max(1, WEIGHTS // (size * planes[0].in_features))
    for start in range(first, whole, step):
        part = slice(start, min(start + step, whole))
        yield part, _unpack(planes, part, size, dtype)
    if whole < last:
        part = slice(whole, last)
        yield part, _unpack(planes, part, last - whole, dtype)


@torch.no_grad()
def _unpack(planes: Sequence[FourBitLinear], part: slice, size: int, dtype: torch.dtype) -> Tensor:
    """The weights ``[in, n]`` of the outputs in some blocks of one size, in scratch memory."""
    order = _unpacked_order(size)
    group = min(plane.group for plane in planes)
    shape = (-1, group, part.stop - part.start)
    numbers = [_numbers(plane, part, group, order) for plane in planes]
    total = torch.stack([zeros for _, zeros in numbers]).sum(0).to(dtype)
    # The largest weights are added last, so that the sum is rounded once at its own size.
    for slot, (plane, (scales, _)) in reversed(list(enumerate(zip(planes, numbers, strict=True)))):
        codes = _codes(plane, part, size, dtype, slot).view(shape)
        total = torch.addcmul(total, codes, scales.to(dtype), out=codes)
    matrix = total.view(-1, shape[2])
    if order is None:
        return matrix
    return matrix.view(len(matrix), -1, size)[..., order.argsort()].view_as(matrix)


def _codes(plane: FourBitLinear, part: slice, size: int, dtype: torch.dtype, slot: int) -> Tensor:
    """The codes of some blocks, less `CENTER`, in scratch memory ``[in, n]``."""
    half, outputs = size // 2, part.stop - part.start
    packed = plane.weight[part].view(-1, plane.in_features, half)
    matrix = scratch(plane.in_features * outputs, dtype, slot).view(plane.in_features, outputs)
    # [inputs, blocks, low or high, half]
    halves = matrix.view(plane.in_features, -1, 2, half)
    nibbles = scratch(packed.numel(), torch.uint8).view(packed.shape)
    signed = nibbles.view(torch.int8)
    torch.bitwise_and(packed, 15, out=nibbles)
    halves[:, :, 0].copy_(signed.sub_(CENTER).transpose(0, 1))
    torch.bitwise_right_shift(packed, 4, out=nibbles)
    halves[:, :, 1].copy_(signed.sub_(CENTER).transpose(0, 1))
    return matrix


def _numbers(
    plane: FourBitLinear, part: slice, group: int, order: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scales and zeros of some outputs, each ``[in / group, 1, n]``.

    Args:
        group: a divisor of the plane's own.
        order: of a block's outputs; None keeps theirs.
    """
    numbers = plane.scales_and_zeros[:, part]
    if order is not None:
        numbers = numbers.view(len(numbers), -1, len(order), 2)[:, :, order].flatten(1, 2)
    numbers = numbers.repeat_interleave(plane.group // group, dim=0)
    # Contiguous, since `addcmul` is several times slower on strided numbers.
    scales, zeros = numbers.movedim(-1, 0).contiguous()[:, :, None]
    return scales, zeros


def pack_codes(codes: Tensor) -> Tensor:
    """Codes ``[out, in]`` uint8 in the kernel's order, ``[out, in / 2]`` uint8.

    The same bytes as torch's own function returns, which is several times slower.
    """
    out_features, in_features = codes.shape
    packed = codes.new_empty(out_features, in_features // 2)
    size = block_size()
    whole = out_features - out_features % size
    for part, block in ((slice(whole), size), (slice(whole, None), out_features - whole)):
        if block and packed[part].numel():
            low, high = block_order(block)
            blocks = codes[part].view(-1, block, in_features)
            pairs = blocks[:, low] | blocks[:, high] << 4
            packed[part].view(-1, in_features, block // 2).copy_(pairs.transpose(1, 2))
    return packed


@cache
def block_size() -> int:
    """How many outputs the kernel stores together, on this processor.

    A block holds, for each input, the codes of its outputs, two in a byte. If the number of outputs
    is not a multiple, the rest is one smaller block.
    """
    low, high = _probe(BLOCK)
    for size in (BLOCK, 32, 16):
        first = torch.cat([low[: size // 2], high[: size // 2]])  # of the first input
        if torch.equal(first.sort().values, torch.arange(size)):
            return size
    raise RuntimeError("torch stores 4-bit weights in an unknown order")


@cache
def block_order(size: int) -> tuple[Tensor, Tensor]:
    """Which outputs of a block are in the low halves of its bytes, and which in the high ones."""
    low, high = _probe(size)
    return low[: size // 2], high[: size // 2]


@cache
def _unpacked_order(size: int) -> Tensor | None:
    """The order of a block's outputs in its unpacked codes; None: the outputs' own."""
    order = torch.cat(block_order(size))
    return None if torch.equal(order, torch.arange(size)) else order


def _probe(size: int) -> tuple[Tensor, Tensor]:
    """Packs a matrix whose codes are the numbers of its outputs; the numbers in each half byte."""
    outputs = torch.arange(size, dtype=torch.uint8)[:, None].expand(size, 32)
    packed = [_packed_by_torch(part).flatten() for part in (outputs & 15, outputs >> 4)]
    low, high = ([part >> 4 * half & 15 for part in packed] for half in (0, 1))
    return (low[0] + 16 * low[1]).long(), (high[0] + 16 * high[1]).long()


def _packed_by_torch(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return packed
