"""Measures weights in 8 and 4 bits: which way is the fastest, for which number of rows.

torch's kernels for such weights multiply in float32, so their time grows with the rows. Unpacking
the weights takes the same time for any number of rows, and the product that follows is fast where
the processor has instructions for it. So one number tells all: the most rows for which the kernel
is used. One row needs no contest, since a decode step would unpack all weights for each token.

An LM head in 8 bits competes with the product that was chosen for it in bfloat16. Knows nothing of
files or models.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, TypeVar

import torch
from torch.nn.functional import linear

from d3cli.base.errors import one_line
from d3cli.base.free_memory import free_memory
from d3cli.kernels.contest import HOPELESS, Call, Watch, compare
from d3cli.kernels.int4_linear import BLOCK, FourBitLinear
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.measure import (
    INPUTS,
    POOL_SHARE,
    ROUNDS,
    ROUNDS_OF_SEVERAL,
    WORST_ERROR,
    copies_of,
    in_turn,
    random_rows,
    random_weight,
)
from d3cli.kernels.nested_linear import NestedLinear
from d3cli.kernels.products import Product, pack

Kind = Literal["int8", "int4", "nested"]
Small = EightBitLinear | FourBitLinear | NestedLinear
One = TypeVar("One", bound=Small)

# Bytes of the copies of a linear: beyond the caches of a core.
POOL_BYTES = 32 << 20
# Of a linear with more weights, the first outputs are measured.
MOST_WEIGHTS = 1 << 20
# Rows without a limit.
UNLIMITED = 1 << 30
# The kernel may be used for so many rows at most, and rows that stand for the next larger numbers.
LIMITS: Mapping[int, int] = {1: 3, 4: 9, 16: 32, 64: 128, 256: 512}
KERNEL, UNPACKED, HALF = "kernel", "unpacked", "bfloat16"
ROUND: Mapping[Kind, Callable[..., Small]] = {
    "int8": EightBitLinear,
    "int4": FourBitLinear.rounded,
    "nested": NestedLinear.rounded,
}


@dataclass(frozen=True, slots=True)
class MeasuredRows:
    """What was found for a shape of weights in 8 or 4 bits.

    Attributes:
        kernel_rows: the most rows for which the kernel is used, a key of `LIMITS` or `UNLIMITED`.
        steady: whether the machine was quiet meanwhile.
        failed: why weights cannot be unpacked here, or nothing.
    """

    kernel_rows: int
    steady: bool
    failed: str = ""


@dataclass(frozen=True, slots=True)
class MeasuredHead:
    """What was found for the shape of an LM head.

    Attributes:
        in_8_bits: whether the product of one row is faster in 8 bits, by a margin in every round.
        share: its median time as a share of the time in bfloat16.
        steady: whether the machine was quiet meanwhile.
    """

    in_8_bits: bool
    share: float
    steady: bool


@torch.inference_mode()
def measure_rows(kind: Kind, out_features: int, in_features: int) -> MeasuredRows:
    """Up to how many rows the kernel is faster than unpacking, with torch's current threads."""
    pool = _copies(kind, out_features, in_features)
    if why := why_not_exact(with_kernel(pool[0], 0)):
        return MeasuredRows(UNLIMITED, steady=True, failed=why)
    watch, steady = Watch(), True
    for limit, count in LIMITS.items():
        rows = random_rows(count, in_features)
        calls = {
            KERNEL: multiply_in_turn([with_kernel(each, UNLIMITED) for each in pool], rows),
            UNPACKED: multiply_in_turn([with_kernel(each, 0) for each in pool], rows),
        }
        found = compare(calls, KERNEL, rounds=ROUNDS_OF_SEVERAL)
        steady = steady and found.is_steady
        if found.winner([UNPACKED]) == UNPACKED:
            return MeasuredRows(limit, steady=steady and watch.is_awake)
    return MeasuredRows(UNLIMITED, steady=steady and watch.is_awake)


@torch.inference_mode()
def measure_head(
    out_features: int, in_features: int, product: Product, packed: bool
) -> MeasuredHead:
    """Whether an LM head is faster in 8 bits than in bfloat16, for one row.

    Args:
        product: what was chosen for one row in bfloat16.
        packed: whether 8 bits are packed for oneDNN.
    """
    weight, row = random_weight(out_features, in_features), random_rows(1, in_features)
    plain = copies_of(weight)
    small = EightBitLinear(weight, None)
    small_ones = [small, *(deepcopy(small) for _ in plain[1:])]
    if packed:
        for each in small_ones:
            each.pack()
    if product.packed:
        plain = [pack(each) for each in plain]
    watch = Watch()
    calls = {
        HALF: in_turn(product.multiply, row, plain),
        KERNEL: multiply_in_turn([with_kernel(each, UNLIMITED) for each in small_ones], row),
    }
    found = compare(calls, HALF, rounds=ROUNDS)
    in_8_bits = found.winner([KERNEL]) == KERNEL
    share = found.seconds(KERNEL) / found.seconds(HALF) if KERNEL in found.rounds else HOPELESS
    return MeasuredHead(in_8_bits, share, steady=found.is_steady and watch.is_awake)


def _copies(kind: Kind, out_features: int, in_features: int) -> list[Small]:
    """Linears of a shape, or of its first outputs."""
    most = max(BLOCK, MOST_WEIGHTS // in_features // BLOCK * BLOCK)
    weight = random_weight(min(out_features, most), in_features)
    first = ROUND[kind](weight, None, dtype=torch.bfloat16)
    held = sum(parameter.nbytes for parameter in first.parameters())
    count = min(POOL_BYTES, int(POOL_SHARE * free_memory())) // held
    return [first, *(deepcopy(first) for _ in range(count))]


def with_kernel(small: One, rows: int) -> One:
    """The same linear, whose kernel is used for so many rows at most."""
    other = copy(small)
    other.kernel_rows = rows
    return other


def multiply_in_turn(linears: Sequence[Small], rows: torch.Tensor) -> Call:
    """Multiplies by each linear in turn."""
    turn = cycle(linears)
    return lambda: next(turn)(rows)


def why_not_exact(small: Small) -> str:
    """Why a linear does not do here: it raises, or rounds more than torch's own product does."""
    # Not `random_rows`, which are numbers of the weights too: a few products would be far larger
    # than all others, and the rounding of these the only error.
    generator, held = torch.Generator().manual_seed(2), small.dequantized()
    rows = torch.randn(INPUTS, small.in_features, generator=generator).bfloat16()
    exact = rows.double() @ held.double().T
    allowed = WORST_ERROR * _error(linear(rows, held.bfloat16()), exact)
    try:
        found = small(rows)
    except Exception as error:  # a kernel that does not run here may raise anything
        return one_line(error)[:120]
    off = _error(found, exact)
    return "" if off <= allowed else f"its error is {WORST_ERROR * off / allowed:.2f} times torch's"


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())
