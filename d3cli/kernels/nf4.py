"""NF4 rounding on a CPU: bit for bit as bitsandbytes rounds, four times as fast.

Each weight becomes the index of the nearest of 16 values. bitsandbytes finds it by binary search,
one weight at a time. Here a chunk that fits the processor's cache is compared with all 15
midpoints, by vector instructions on many weights at once. Knows nothing of models.
"""

from functools import cache

import torch
from torch import Tensor

# The 16 values, from appendix E of arXiv 2305.14314.
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
BLOCK = 64  # weights that share a scale
CHUNK = 1 << 18  # weights rounded at once: a megabyte in float32

OPERATION = "bitsandbytes::quantize_4bit"


@cache
def register_rounding() -> None:
    """Makes bitsandbytes quantize to 4 bits with this module on a CPU, in this whole process.

    bitsandbytes' own kernel still does everything but NF4 in blocks of 64. bitsandbytes must be
    imported, since it defines the operation.
    """
    torch.library.register_kernel(OPERATION, "cpu", _quantize)


def _quantize(
    weight: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[Tensor, Tensor]:
    ours = quant_type == "nf4" and blocksize == BLOCK and quant_storage == torch.uint8
    if ours and weight.numel() % BLOCK == 0:
        return round_to_nf4(weight)
    own = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    operation = torch.ops.bitsandbytes.quantize_4bit.default
    found: tuple[Tensor, Tensor] = operation.redispatch(
        own, weight, blocksize, quant_type, quant_storage
    )
    return found


@torch.no_grad()
def round_to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weights, two per byte, ``[numel / 2, 1]`` uint8, and the blocks' scales ``[numel / 64]``.

    Args:
        weight: any shape and float dtype; its size is a multiple of 64.
    """
    values = torch.tensor(VALUES, dtype=torch.float32)
    midpoints = ((values[:-1] + values[1:]) / 2).tolist()
    flat = weight.reshape(-1)
    packed = torch.empty(len(flat) // 2, 1, dtype=torch.uint8)
    scales = torch.empty(len(flat) // BLOCK, dtype=torch.float32)
    # Allocated once, since allocating costs as much as rounding. All float32, since torch does not
    # vectorize a comparison whose result has another dtype.
    buffers = torch.empty(3, min(CHUNK, len(flat)), dtype=torch.float32)
    for start in range(0, len(flat), CHUNK):
        chunk = flat[start : start + CHUNK]
        scaled, number, below = buffers[:, : len(chunk)]
        blocks = scaled.copy_(chunk).view(-1, BLOCK)
        largest = torch.abs(scaled, out=below).view(-1, BLOCK).amax(dim=-1)
        scales[start // BLOCK :][: len(largest)] = largest
        # The floor for a block of zeros and the rounding of the inverse are bitsandbytes'.
        blocks.mul_((1.0 / largest.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
        number.fill_(len(midpoints))
        for midpoint in midpoints:
            number.sub_(torch.le(scaled, midpoint, out=below))
        packed[start // 2 :][: len(chunk) // 2, 0] = number[::2] * 16 + number[1::2]
    return packed, scales
