"""GGUF's types of 4 bits as the groups of a `FourBitLinear`: the same codes, nothing rounded again.

In these types, 32 weights in a row share a scale and an offset, as in `int4_rounding.Groups`. The
scales, which the files hold in float16 or finer, are rounded to the dtype of the activations. In
bfloat16 that changes a weight by less than rounding the unpacked weight to bfloat16 does, on
average. Layouts as in ``ggml-common.h`` and the package `gguf`.
"""

import torch
from torch import Tensor

from d3cli.kernels.int4_rounding import CENTER, Groups

GROUP = 32
KINDS = ("Q4_0", "Q4_1", "Q4_K")
_IN_Q4_K = 8  # groups of a block


def groups_of(packed: Tensor, kind: str, dtype: torch.dtype) -> Groups:
    """Rows of a tensor in 4 bits.

    Args:
        packed: the rows as the file holds them, uint8 ``[rows, bytes]``.
        kind: one of `KINDS`.
        dtype: of the scales and zeros.
    """
    if kind == "Q4_K":
        halves, scale, offset = _read_q4_k(packed)
    else:
        halves, scale, offset = _read_q4(packed, has_offset=kind == "Q4_1")
    codes = torch.stack([halves & 15, halves >> 4], dim=-2)
    rounded = scale.to(dtype)
    zero = offset + CENTER * scale
    return Groups(codes.view(len(packed), -1), rounded, zero.to(dtype))


def _read_q4(packed: Tensor, *, has_offset: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The bytes of the codes ``[rows, groups, 16]``, and float32 scales and offsets.

    A block is a scale, in Q4_1 an offset, and 16 bytes: first the low halves, then the high ones.
    """
    numbers = 2 if has_offset else 1
    blocks = packed.view(len(packed), -1, 2 * numbers + GROUP // 2)
    scale = _half(blocks[..., :2])
    offset = _half(blocks[..., 2:4]) if has_offset else -CENTER * scale
    return blocks[..., 2 * numbers :], scale, offset


def _read_q4_k(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_read_q4`, with codes ``[rows, pairs of groups, 32]``: low halves are the first group's.

    A block is two float16 numbers, which 8 scales and 8 offsets of 6 bits multiply, and 128 bytes.
    """
    rows = len(packed)
    blocks = packed.view(rows, -1, 2 + 2 + 12 + _IN_Q4_K * GROUP // 2)
    first, second, third = blocks[..., 4:16].reshape(rows, -1, 3, 4).unbind(-2)
    scales = torch.cat([first & 63, third & 15 | first >> 2 & 48], dim=-1)
    offsets = torch.cat([second & 63, third >> 4 | second >> 2 & 48], dim=-1)
    scale = _half(blocks[..., :2])[..., None] * scales
    offset = _half(blocks[..., 2:4])[..., None] * -offsets.float()
    codes = blocks[..., 16:].reshape(rows, -1, GROUP)
    return codes, scale.view(rows, -1), offset.view(rows, -1)


def _half(stored: Tensor) -> Tensor:
    """Float16 numbers, two bytes each along the last dimension, in float32."""
    return stored.contiguous().view(torch.float16)[..., 0].float()
