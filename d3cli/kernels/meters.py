"""What measures for `KernelChoices`, and the records of what it finds. Knows nothing of files."""

from collections.abc import Callable
from dataclasses import dataclass

from d3cli.kernels.choice_file import (
    Choice,
    HeadChoice,
    PackingChoice,
    Record,
    RowsChoice,
    Wanted,
)
from d3cli.kernels.measure import Measured
from d3cli.kernels.measure_packing import MeasuredPacking
from d3cli.kernels.measure_small import Kind, MeasuredHead, MeasuredRows
from d3cli.kernels.products import Product


@dataclass(frozen=True, slots=True)
class Meters:
    """What measures: a shape of weights in bfloat16, one in 8 or 4 bits, packing, an LM head."""

    products: Callable[[int, int], Measured]
    rows: Callable[[Kind, int, int], MeasuredRows]
    packing: Callable[[int, int], MeasuredPacking]
    head: Callable[[int, int, Product, bool], MeasuredHead]

    def record(self, wanted: Wanted, bfloat16: Product, packed: bool) -> Record | None:
        """What one measurement finds; None if the machine was not quiet meanwhile.

        Args:
            bfloat16: the product of one row by a weight of this shape in bfloat16.
            packed: whether such a weight is packed in int8.
        """
        kind, *(outputs, inputs) = wanted
        if kind == "bfloat16":
            products = self.products(outputs, inputs)
            return Choice.of((outputs, inputs), products) if products.steady else None
        if kind == "head":
            head = self.head(outputs, inputs, bfloat16, packed)
            return HeadChoice.of((outputs, inputs), head) if head.steady else None
        if kind == "packing":
            packing = self.packing(outputs, inputs)
            return PackingChoice.of((outputs, inputs), packing) if packing.steady else None
        rows = self.rows(kind, outputs, inputs)
        return RowsChoice.of((kind, outputs, inputs), rows) if rows.steady else None
