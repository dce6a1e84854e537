"""Measures which product is the fastest for a shape of bfloat16 weights on this machine.

`contest` compares the candidates' times. Before that, their results are compared with float64: a
candidate that rounds more than `torch.nn.functional.linear` does is out, and so is one that raises.

Products of one row run on many copies of a weight, more than the caches hold, as the layers of a
model are. Products of several rows are bound by arithmetic, so a part of one weight is enough.
Knows nothing of files or models.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor
from torch.nn.functional import linear

from d3cli.base.errors import one_line
from d3cli.base.free_memory import free_memory
from d3cli.kernels.contest import MARGIN, Call, Outcome, Watch, compare
from d3cli.kernels.products import (
    FEW,
    FOR_ONE_ROW,
    FOR_SOME_ROWS,
    SOME,
    Multiply,
    Product,
    Products,
    can_pack,
    pack,
)

# Packed weights must not take more than this share of the time of plain ones with many rows.
WORST_PREFILL = 1.25
# Packed weights are much faster for few rows if they take less than this share of the time. Then
# they may take this many times as long for one row.
MUCH, NEARLY = 0.75, 1.35
# bfloat16 may take this much longer than float32 with many rows, if it is not slower with one.
WORST_BFLOAT16 = 1.25
ROUNDS, ROUNDS_OF_SEVERAL = 5, 3
# Bytes of the copies of a weight, beyond most caches, and at most this share of the free memory.
# There are at most as many copies as a model has layers.
POOL_BYTES, POOL_SHARE, MOST_COPIES = 128 << 20, 1 / 16, 64
# Weights of a larger matrix are measured as its first rows: the most weights for one row, for more.
MOST_WEIGHTS, MOST_FOR_SEVERAL = 1 << 23, 1 << 20
# Random numbers take time, so a weight repeats so many of them.
RANDOM = 100_003
# The rows that stand for "few", "some" and "many".
SEVERAL = {"few": FEW, "some": SOME, "many": 64}
# The rows of a prompt, for which bfloat16 is compared with float32.
PROMPT = 256
# The exactness check: inputs, and outputs of each; an error this many times torch's is too large.
INPUTS, OUTPUTS, WORST_ERROR = 32, 256, 1.1


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found for a shape.

    Attributes:
        speed, torch_speed: bytes of weights a second with one row, by the product chosen and by
            torch's own.
        steady: whether the machine was quiet meanwhile.
        failed: the candidates that raised or were not exact, and why.
    """

    products: Products
    speed: float
    torch_speed: float
    steady: bool
    failed: Mapping[Product, str]


@torch.inference_mode()
def measure(out_features: int, in_features: int) -> Measured:
    """The fastest products of bfloat16 weights of a shape, with torch's current threads."""
    weight = random_weight(out_features, in_features)
    candidates, failed = _exact_products(weight)
    watch = Watch()
    one = _compare_one(weight, candidates)
    several = {name: _compare_several(weight, rows, candidates) for name, rows in SEVERAL.items()}
    steady = one.is_steady and watch.is_awake
    products = decide(one, several)
    return Measured(
        products,
        speed=weight.nbytes / one.seconds(products.one),
        torch_speed=weight.nbytes / one.seconds(Product.LINEAR),
        steady=steady,
        failed=failed | dict(one.failed),
    )


def _compare_one(weight: Tensor, candidates: Iterable[Product]) -> Outcome[Product]:
    """The times of one row, by copies of a weight."""
    row, plain = random_rows(1, weight.shape[1]), copies_of(weight)
    packed = [pack(each) for each in plain] if Product.PACKED in candidates else []
    calls: dict[Product, Call] = {
        product: in_turn(product.multiply, row, packed if product.packed else plain)
        for product in candidates
        if product not in (Product.FLOAT32, Product.WEIGHT_FIRST)
    }
    return compare(calls, Product.LINEAR, rounds=ROUNDS)


def _compare_several(weight: Tensor, rows: int, candidates: Iterable[Product]) -> Outcome[Product]:
    """The times of several rows, by a part of a weight."""
    part = weight[: max(1, MOST_FOR_SEVERAL // weight.shape[1])].clone()
    inputs = random_rows(rows, weight.shape[1])
    packed = [pack(part)] if Product.PACKED in candidates else []
    calls: dict[Product, Call] = {
        product: in_turn(product.multiply, inputs, packed if product.packed else [part])
        for product in candidates
        if product not in FOR_ONE_ROW and (rows <= SOME or product not in FOR_SOME_ROWS)
    }
    return compare(calls, Product.LINEAR, rounds=ROUNDS_OF_SEVERAL)


def decide(one: Outcome[Product], several: Mapping[str, Outcome[Product]]) -> Products:
    """The order of a weight, and with it the products.

    Packing costs time and memory while loading, so packed weights must be faster by a margin than
    the best product of plain ones, or nearly as fast and much faster for the few rows in which
    drafts are verified. They must not slow down a prefill much either.

    Args:
        several: the outcomes of `SEVERAL`, by name.
    """
    plain = one.winner([Product.MV, Product.WITHOUT_ONEDNN])
    packed = one.winner([Product.PACKED, Product.PACKED_FOUR])
    few, many = several["few"], several["many"]
    others = [Product.FLOAT32, Product.WEIGHT_FIRST, Product.WITHOUT_ONEDNN]
    helps_few = Product.PACKED in few.rounds and (
        few.seconds(Product.PACKED) < MUCH * few.seconds(few.winner(others))
    )
    is_faster = one.worst_share(packed) < MARGIN * one.worst_share(plain)
    is_near = one.seconds(packed) < NEARLY * one.seconds(plain)
    if (
        packed.packed
        and (is_faster or (helps_few and is_near))
        and all(Product.PACKED in found.rounds for found in several.values())
        and many.seconds(Product.PACKED) < WORST_PREFILL * many.seconds(Product.LINEAR)
    ):
        return Products(packed, Product.PACKED, Product.PACKED, Product.PACKED)
    return Products(plain, **{name: found.winner(others) for name, found in several.items()})


@torch.inference_mode()
def bfloat16_is_fast(products: Products, out_features: int, in_features: int) -> bool | None:
    """Whether bfloat16 is no slower than float32 on this machine; None if the machine is busy.

    Weights of one shape decide. With one row it may not be slower, and with many not much slower.

    Args:
        products: of bfloat16 weights of this shape.
    """
    weight = random_weight(out_features, in_features)
    plain, wide = copies_of(weight), copies_of(weight.float())
    narrow = [pack(each) for each in plain] if products.packed else plain
    watch = Watch()
    for rows, allowed in ((1, 1.0), (PROMPT, WORST_BFLOAT16)):
        inputs = random_rows(rows, in_features)
        calls = {
            torch.float32: in_turn(linear, inputs.float(), wide),
            torch.bfloat16: in_turn(products.for_rows(rows).multiply, inputs, narrow),
        }
        found = compare(calls, torch.float32, rounds=ROUNDS_OF_SEVERAL)
        if not (found.is_steady and watch.is_awake):
            return None
        if torch.bfloat16 not in found.rounds:
            return False
        if found.seconds(torch.bfloat16) > allowed * found.seconds(torch.float32):
            return False
    return True


def random_weight(out_features: int, in_features: int, most: int | None = None) -> Tensor:
    """A random weight of a shape, or its first rows if that would be more than `most` numbers.

    Args:
        most: by default `MOST_WEIGHTS`.
    """
    rows = min(out_features, max(1, (most or MOST_WEIGHTS) // in_features))
    numbers = random_rows(1, min(RANDOM, rows * in_features)).flatten()
    whole = numbers.repeat(-(-rows * in_features // len(numbers)))
    return whole[: rows * in_features].view(rows, in_features)


def random_rows(count: int, in_features: int) -> Tensor:
    """Inputs ``[count, in]`` in bfloat16, always the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, in_features, generator=generator).bfloat16()


def copies_of(weight: Tensor) -> list[Tensor]:
    """A weight and its copies: together more than the caches hold, unless it is small."""
    room = min(POOL_BYTES, int(POOL_SHARE * free_memory()))
    count = min(MOST_COPIES, room // weight.nbytes)
    return [weight, *(weight.clone() for _ in range(count))]


def in_turn(multiply: Multiply, rows: Tensor, weights: Sequence[Tensor]) -> Call:
    """Multiplies by each weight in turn."""
    turn = cycle(weights)
    return lambda: multiply(rows, next(turn), None)


def _exact_products(weight: Tensor) -> tuple[list[Product], dict[Product, str]]:
    """The products that run here and round no more than torch's own, and why others are out."""
    part = weight[:OUTPUTS].clone()
    inputs = random_rows(INPUTS, weight.shape[1])
    exact = linear(inputs.double(), part.double())
    candidates, failed, allowed = [Product.LINEAR], dict[Product, str](), 0.0
    for product in Product:
        if product.needs_onednn and not can_pack(weight.dtype, weight.device):
            continue
        try:
            held = pack(part) if product.packed else part
            batches = inputs[:, None] if product in FOR_ONE_ROW else [inputs]
            found = torch.cat([product.multiply(rows, held, None) for rows in batches])
        except Exception as error:  # a kernel that does not run here may raise anything
            failed[product] = one_line(error)[:120]
            continue
        off = float((found.double() - exact).square().mean().sqrt())
        if product is Product.LINEAR:
            allowed = WORST_ERROR * off
        elif off <= allowed:
            candidates.append(product)
        else:
            failed[product] = f"its error is {WORST_ERROR * off / allowed:.2f} times torch's"
    return candidates, failed
