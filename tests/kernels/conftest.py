"""What tests of kernels share: choices that are kept as if they had been measured."""

import os
from collections.abc import Callable

import pytest
import torch

from d3cli.files.safetensors import Description
from d3cli.kernels.choice_file import Machine, Wanted
from d3cli.kernels.choices import KernelChoices, _choices
from d3cli.kernels.joint_shapes import joint_shapes
from d3cli.kernels.measure import Measured
from d3cli.kernels.measure_packing import MeasuredPacking
from d3cli.kernels.measure_small import MeasuredHead, MeasuredRows
from d3cli.kernels.meters import Meters
from d3cli.kernels.plan import TINY
from d3cli.kernels.products import Products, can_pack

needs_packing = pytest.mark.skipif(
    not can_pack(torch.bfloat16, torch.device("cpu")), reason="oneDNN takes no bfloat16 here"
)

# Where bytes are not multiplied into 32 bits at once, sums overflow, and d3 does not take them.
needs_digits = pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") in {"SSE41", "AVX", "AVX2"}
    or not {"avx512_vnni", "avx_vnni"} & set(Machine.here().features),
    reason="this processor, or a limit on it, has no instructions for products of bytes",
)

KeepChoices = Callable[[Description, Products], None]


def measured(products: Products, *, steady: bool = True) -> Measured:
    """As if a shape had been measured."""
    return Measured(products, speed=3e10, torch_speed=2e10, steady=steady, failed={})


def meters(
    products: Callable[[int, int], Measured],
    *,
    rows: int = 4,
    packed: bool = False,
    head_in_8_bits: bool = True,
    steady: bool = True,
) -> Meters:
    """Meters without a clock, which find the same for every shape in 8 or 4 bits and every head."""
    return Meters(
        products,
        lambda *_: MeasuredRows(rows, steady),
        lambda *_: MeasuredPacking(packed, 0.7, steady),
        lambda *_: MeasuredHead(head_in_8_bits, 0.5, steady),
    )


def forget_choices() -> None:
    """Has this process read the file again."""
    _choices.cache_clear()


@pytest.fixture
def keep_choices(monkeypatch: pytest.MonkeyPatch) -> KeepChoices:
    """Keeps the same products for every weight of a model, in the home of the test."""

    def keep(model: Description, products: Products) -> None:
        monkeypatch.setenv("D3_KERNELS", "auto")
        shapes = [tensor.shape for tensor in model.tensors if len(tensor.shape) == 2]
        shapes += joint_shapes(model).values()
        choices = KernelChoices(meters(lambda *_: measured(products)), lambda: False)
        weights: list[Wanted] = [("bfloat16", a, b) for a, b in shapes if a * b >= TINY]
        choices.prepare(weights, again=True)
        forget_choices()

    return keep
