"""The ways to multiply rows by a bfloat16 weight on a CPU: the candidates of the kernel plan.

| product          | weight | what it does                                                         |
|------------------|--------|----------------------------------------------------------------------|
| torch            | plain  | `torch.nn.functional.linear`                                         |
| … without oneDNN | plain  | the same, by torch's own kernel instead of oneDNN's                  |
| torch mv         | plain  | `torch.mv`; for one row                                              |
| torch in float32 | plain  | converts parts of the weight, multiplies in float32; for several     |
| weight first     | plain  | the weight times the rows, transposed; for 2 to 16                   |
| oneDNN packed    | packed | oneDNN's kernel on blocks in its own order                           |
| … four rows      | packed | the same with one row four times: alone it has too few sums at once  |

Before each product oneDNN reorders the second factor. The weight comes second in `linear`, so that
this takes longer than the product itself if there are few rows. torch's own kernel does not, and
takes less time to call, which decides for small weights.

The processor decides which one is fastest, and its features do not tell: `measure` does. A
plain weight stays where it is, mapped from its file. A packed one is a copy. Knows nothing of files
or of models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn.functional import linear

from d3cli.kernels.device import onednn_takes_bfloat16
from d3cli.kernels.scratch import WEIGHTS, scratch

# Rows that oneDNN's kernel gets in place of one.
ROWS = 4
# Weights that are converted to float32 at once: half of what is unpacked elsewhere, as each takes 4
# bytes.
CHUNK = WEIGHTS // 2
# The numbers of rows that choose a product of their own: 1, up to 4, up to 16, more.
FEW, SOME = 4, 16

# Multiplies ``[M, in]`` by a weight ``[out, in]`` and adds a bias ``[out]``.
Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Product(StrEnum):
    """What computes the product of some rows with a bfloat16 weight."""

    LINEAR = "torch"
    WITHOUT_ONEDNN = "torch without oneDNN"
    MV = "torch mv"
    FLOAT32 = "torch in float32"
    WEIGHT_FIRST = "torch, weight first"
    PACKED = "oneDNN packed"
    PACKED_FOUR = "oneDNN packed, four rows"

    @property
    def packed(self) -> bool:
        """Whether the weight has oneDNN's order."""
        return self in (Product.PACKED, Product.PACKED_FOUR)

    @property
    def needs_onednn(self) -> bool:
        """Whether it is a candidate only where oneDNN multiplies bfloat16."""
        return self.packed or self is Product.WITHOUT_ONEDNN

    @property
    def multiply(self) -> Multiply:
        return _FUNCTIONS[self]


FOR_ONE_ROW = frozenset({Product.MV, Product.PACKED_FOUR})
# Of many rows the result, which must be transposed, costs more than this product saves.
FOR_SOME_ROWS = frozenset({Product.WEIGHT_FIRST})


@dataclass(frozen=True, slots=True)
class Products:
    """The products of one weight, by the number of rows. All of them read the same order.

    Attributes:
        one: for a single row, as in a decode step.
        few: for 2 to 4 rows.
        some: for 5 to 16 rows.
        many: for more rows, as in a prefill.
    """

    one: Product = Product.LINEAR
    few: Product = Product.LINEAR
    some: Product = Product.LINEAR
    many: Product = Product.LINEAR

    def __post_init__(self) -> None:
        several = (self.few, self.some, self.many)
        if {self.one.packed} != {product.packed for product in several}:
            raise ValueError("some products are packed, and some are not")
        if FOR_ONE_ROW & set(several):
            raise ValueError("a product for one row cannot have several")
        if FOR_SOME_ROWS & {self.one, self.many}:
            raise ValueError("a product for some rows cannot have one or many")

    @property
    def packed(self) -> bool:
        """Whether the weight has oneDNN's order."""
        return self.one.packed

    @property
    def summary(self) -> str:
        """The product for one row, and that for many if it is a special one."""
        special = self.many not in (Product.LINEAR, Product.PACKED)
        return f"{self.one} ({self.many} for many tokens)" if special else self.one.value

    def for_rows(self, rows: int) -> Product:
        """The product for this number of rows."""
        if rows == 1:
            return self.one
        if rows <= FEW:
            return self.few
        return self.some if rows <= SOME else self.many


PACKED = Products(Product.PACKED, Product.PACKED, Product.PACKED, Product.PACKED)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN's packed kernel takes weights of this dtype on this device."""
    return dtype == torch.bfloat16 and device.type == "cpu" and onednn_takes_bfloat16()


def pack(weight: Tensor) -> Tensor:
    """A copy of a weight ``[out, in]`` in oneDNN's order, an opaque tensor of the same shape."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    return packed


def _without_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # a property of the module
    try:
        return linear(rows, weight, bias)
    finally:
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]


def _by_mv(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    row = rows.reshape(-1)
    found = torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row)
    return found.reshape(1, -1)


def _in_float32(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found = rows.new_empty(len(rows), len(weight))
    wide = rows.float()
    step = max(1, CHUNK // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        some = weight[part].detach()  # the buffer must not remember how it was computed
        converted = scratch(some.numel(), torch.float32).view(some.shape).copy_(some)
        found[:, part] = linear(wide, converted, None if bias is None else bias[part].float())
    return found


def _weight_first(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return (weight @ rows.T).T.contiguous()
    return torch.addmm(bias[:, None], weight, rows.T).T.contiguous()


def _packed(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found


def _four_times(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _packed(rows.expand(ROWS, -1), weight, bias)[:1]


_FUNCTIONS: dict[Product, Multiply] = {
    Product.LINEAR: linear,
    Product.WITHOUT_ONEDNN: _without_onednn,
    Product.MV: _by_mv,
    Product.FLOAT32: _in_float32,
    Product.WEIGHT_FIRST: _weight_first,
    Product.PACKED: _packed,
    Product.PACKED_FOUR: _four_times,
}
