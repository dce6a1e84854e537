"""Memory for unpacked weights: buffers of each thread and dtype, kept for the next product.

New memory for each product would cost about as much time as unpacking: the system clears it first.
"""

import threading

import torch
from torch import Tensor

# Weights that are unpacked at once: few enough that they stay in the processor's cache, and enough
# that a product with them is as fast as one with all.
WEIGHTS = 1 << 21


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.kept: dict[tuple[torch.dtype, int], Tensor] = {}


_buffers = _Buffers()


def scratch(numel: int, dtype: torch.dtype, slot: int = 0) -> Tensor:
    """A buffer ``[numel]`` of this thread. The next call with the same dtype returns it again.

    Args:
        slot: another number is another buffer.
    """
    kept = _buffers.kept.get((dtype, slot))
    if kept is None or kept.numel() < numel:
        with torch.inference_mode(mode=False):  # so that it can be written to in either mode
            kept = _buffers.kept[dtype, slot] = torch.empty(numel, dtype=dtype)
    return kept[:numel]


def usual_rows(dtype: torch.dtype, few: int) -> int:
    """The most rows for which torch's kernels for fewer bits are used, unless it was measured.

    In float32 they are slower than unpacking even for one row.

    Args:
        dtype: of the activations.
        few: the number for bfloat16.
    """
    return 0 if dtype == torch.float32 else few
