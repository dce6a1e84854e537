"""NF4 rounding returns bitsandbytes' bits for any weights that a file may hold."""

import bitsandbytes
import pytest
import torch
from torch import Tensor

from d3cli.kernels.nf4 import BLOCK, CHUNK, OPERATION, VALUES, register_rounding, round_to_nf4
from d3cli.model.load import load_model

OPERATION_OF_TORCH = torch.ops.bitsandbytes.quantize_4bit.default


def own(weight: Tensor, kind: str = "nf4", block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """bitsandbytes' own kernel, even when d3's is registered."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    return OPERATION_OF_TORCH.redispatch(keys, weight, block, kind, torch.uint8)


def the_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """Whether two results are the same bits, NaN included."""
    return found[0].equal(expected[0]) and all(
        a.view(torch.int32).equal(b.view(torch.int32))
        for a, b in zip(found, expected, strict=True)
        if a.dtype == torch.float32
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64,), (3, 64), (7, 1920), (CHUNK // 64 + 3, 64)])
def test_the_bits_are_bitsandbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for seed in range(5):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        weight = (weight * 10.0 ** (2 * seed - 6)).to(dtype)
        assert the_same(round_to_nf4(weight), own(weight))


def test_every_bfloat16_value_beside_every_kind_of_scale() -> None:
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    values = values.view(torch.bfloat16)
    for largest in (1e-40, 1e-38, 3e-5, 0.02, 0.0713, 1.0, 7.3, 3e38):
        fitting = values[values.abs().nan_to_num(torch.inf) <= largest]
        rows = torch.zeros(-(-len(fitting) // (BLOCK - 1)), BLOCK, dtype=torch.bfloat16)
        rows[:, 0] = largest
        for row, part in zip(rows, fitting.split(BLOCK - 1), strict=True):
            row[1 : 1 + len(part)] = part
        assert the_same(round_to_nf4(rows), own(rows)), largest


def test_midpoints_zeros_infinities_and_nan() -> None:
    values = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    midpoints = (values[:-1] + values[1:]) / 2
    row = torch.zeros(BLOCK)
    row[:15], row[15:31], row[31] = midpoints, values, -0.0
    zeros, infinite, none = torch.zeros(BLOCK), torch.full((BLOCK,), 1.0), torch.ones(BLOCK)
    infinite[3], none[5], none[9] = torch.inf, torch.nan, -torch.inf
    weight = torch.stack([row, zeros, infinite, none, row.nextafter(torch.tensor(2.0)), -row])
    assert the_same(round_to_nf4(weight), own(weight))


def test_the_values_are_bitsandbytes() -> None:
    assert torch.tensor(VALUES).equal(bitsandbytes.functional.get_4bit_type("nf4", device="cpu"))


def test_bitsandbytes_still_does_everything_else() -> None:
    register_rounding()
    assert torch._C._dispatch_has_kernel_for_dispatch_key(OPERATION, "CPU")
    weight = torch.randn(5, 70)
    for kind, block in (("fp4", 64), ("nf4", 128), ("nf4", 64)):  # 350 is no multiple of 64
        found = OPERATION_OF_TORCH(weight, block, kind, torch.uint8)
        assert the_same(found, own(weight, kind, block)), (kind, block)


def test_loading_reports_its_progress() -> None:
    for options in ({"quantization": "bnb-4bit"}, {"dtype": "float32"}):
        shares: list[float] = []
        load_model(device="cpu", on_progress=shares.append, **options)
        assert len(shares) >= 7 * 16
        assert shares == sorted(shares)
        assert shares[0] < 0.1
        assert 0.7 < shares[-1] <= 1


def test_others_may_quantize_with_gradients_and_other_default_dtypes() -> None:
    register_rounding()
    weight = torch.nn.Parameter(torch.randn(16, 64))
    expected = own(weight.detach())
    assert the_same(OPERATION_OF_TORCH(weight, BLOCK, "nf4", torch.uint8), expected)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = OPERATION_OF_TORCH(weight, BLOCK, "nf4", torch.uint8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert the_same(found, expected)
