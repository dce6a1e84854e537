"""Measures what nested planes take for one token on this machine, beside a weight in bfloat16.

One shape stands for all. Knows nothing of files or models.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

import torch

from d3cli.kernels.contest import Call, compare
from d3cli.kernels.measure import MOST_COPIES, copies_of, in_turn, random_rows, random_weight
from d3cli.kernels.nested_linear import NestedLinear
from d3cli.kernels.products import Products, pack

SHAPE = (2048, 2048)
ROUNDS = 3
Arm = Literal["bfloat16", "both", "high"]


@dataclass(frozen=True, slots=True)
class NestedTimes:
    """Times of one token's product, as shares of bfloat16's.

    Attributes:
        both: with both planes.
        high: without the low one.
    """

    both: float
    high: float


@torch.inference_mode()
def measure_nested(products: Products) -> NestedTimes:
    """The times of nested planes of `SHAPE`, with torch's current threads.

    Args:
        products: of a bfloat16 weight of this shape.
    """
    weight, row = random_weight(*SHAPE), random_rows(1, SHAPE[1])
    plain = copies_of(weight)
    if products.packed:
        plain = [pack(each) for each in plain]
    both = NestedLinear.rounded(weight, None, torch.bfloat16)
    high = deepcopy(both)
    high.low_rows = 0
    calls: dict[Arm, Call] = {
        "bfloat16": in_turn(products.for_rows(1).multiply, row, plain),
        "both": _in_turn(both, row),
        "high": _in_turn(high, row),
    }
    found = compare(calls, "bfloat16", rounds=ROUNDS, hopeless=math.inf)
    seconds = found.seconds("bfloat16")
    return NestedTimes(found.seconds("both") / seconds, found.seconds("high") / seconds)


def _in_turn(linear: NestedLinear, row: torch.Tensor) -> Call:
    """Multiplies by as many copies of a linear as `copies_of` makes of a weight at most."""
    turn = cycle([linear, *(deepcopy(linear) for _ in range(MOST_COPIES // 4))])
    return lambda: next(turn)(row)
