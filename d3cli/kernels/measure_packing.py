"""Measures whether int8 weights are faster in oneDNN's order, multiplied by digits (`digits`).

Packing is for all numbers of rows, so it must be exact, faster by a margin for one row in every
round, and not much slower for few rows and for many than the best way without it. Part of its time
does not depend on the size of the weights, so they are measured as large as they are, up to a
limit. Knows nothing of files or models.
"""

from copy import copy, deepcopy
from dataclasses import dataclass

import torch

from d3cli.base.errors import one_line
from d3cli.base.free_memory import free_memory
from d3cli.kernels.contest import HOPELESS, Outcome, Watch, compare
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.measure import (
    MOST_COPIES,
    POOL_BYTES,
    POOL_SHARE,
    ROUNDS,
    ROUNDS_OF_SEVERAL,
    random_rows,
    random_weight,
)
from d3cli.kernels.measure_small import (
    KERNEL,
    UNLIMITED,
    multiply_in_turn,
    why_not_exact,
    with_kernel,
)

PACKED = "packed"
# Several rows, and the most time that packed weights may take for them, as a share of the plain
# ones': few rows, as in a verification of drafts, and many, as in a prompt.
WORST = {4: 1.5, 64: 1.25}
# Of a linear with more weights, the first outputs are measured: with few rows, with many.
MOST_WEIGHTS, MOST_FOR_MANY = 1 << 25, 1 << 23
MANY = 64
# Outputs of the weight that is compared with float64.
OUTPUTS = 256


@dataclass(frozen=True, slots=True)
class MeasuredPacking:
    """What was found for a shape of weights in 8 bits.

    Attributes:
        is_faster: whether to pack them.
        share: the median time of one row as a share of that of torch's kernel.
        steady: whether the machine was quiet meanwhile.
        failed: why weights cannot be packed here, or nothing.
    """

    is_faster: bool
    share: float
    steady: bool
    failed: str = ""


@torch.inference_mode()
def measure_packing(out_features: int, in_features: int) -> MeasuredPacking:
    """Whether int8 weights of a shape are to be packed, with torch's current threads."""
    if why := _why_not_packed(in_features):
        return MeasuredPacking(False, HOPELESS, steady=True, failed=why)
    watch = Watch()
    plain = _copies(out_features, in_features)
    packed = _packed(plain)
    one = _compare(plain, packed, 1, ROUNDS)
    share = _share(one)
    wins = one.winner([PACKED]) == PACKED
    for count, worst in WORST.items():
        if wins and count >= MANY:
            plain = [_linear(out_features, in_features, MOST_FOR_MANY)]
            packed = _packed(plain)
        wins = wins and _share(_compare(plain, packed, count, ROUNDS_OF_SEVERAL)) <= worst
    return MeasuredPacking(wins, share, steady=one.is_steady and watch.is_awake)


def _compare(
    plain: list[EightBitLinear], packed: list[EightBitLinear], count: int, rounds: int
) -> Outcome[str]:
    """The times of both for so many rows; of the plain ones in the way that is usual for these."""
    rows = random_rows(count, plain[0].in_features)
    kernel_rows = 0 if count >= MANY else UNLIMITED
    calls = {
        KERNEL: multiply_in_turn([with_kernel(each, kernel_rows) for each in plain], rows),
        PACKED: multiply_in_turn(packed, rows),
    }
    return compare(calls, KERNEL, rounds=rounds)


def _share(found: Outcome[str]) -> float:
    """The time of packed weights as a share of the plain ones'."""
    if PACKED not in found.rounds:
        return HOPELESS
    return found.seconds(PACKED) / found.seconds(KERNEL)


def _why_not_packed(in_features: int) -> str:
    """Why weights cannot be packed: it raises, or rounds more than torch's own product does."""
    small = EightBitLinear(random_weight(OUTPUTS, in_features), None)
    try:
        small.pack()
    except Exception as error:  # a kernel that does not run here may raise anything
        return one_line(error)[:120]
    return why_not_exact(small)


def _linear(out_features: int, in_features: int, most: int) -> EightBitLinear:
    """A linear of a shape, or of its first outputs."""
    outputs = min(out_features, max(1, most // in_features))
    return EightBitLinear(random_weight(outputs, in_features, most), None)


def _copies(out_features: int, in_features: int) -> list[EightBitLinear]:
    """A linear and its copies, together more than the caches hold."""
    first = _linear(out_features, in_features, MOST_WEIGHTS)
    room = min(POOL_BYTES, int(POOL_SHARE * free_memory()))
    count = min(MOST_COPIES, room // first.weight.nbytes)
    return [first, *(deepcopy(first) for _ in range(count))]


def _packed(plain: list[EightBitLinear]) -> list[EightBitLinear]:
    """The same linears, packed."""
    packed = [copy(linear) for linear in plain]
    for linear in packed:
        linear._parameters = dict(linear._parameters)  # not those of the linear copied
        linear.pack()
    return packed
