"""Packed linears: as exact as torch's own, in every family."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from d3cli.files.lazy_weights import lazy_state_dict, read_again
from d3cli.kernels import packed_linear
from d3cli.kernels.packed_linear import PackedLinear, pack_linears
from d3cli.kernels.plan import can_pack
from d3cli.model.load import load_model
from d3cli.model.wrap import wrap_model
from tests.conftest import BUILTIN_PATH
from tests.families import random_ids, some_families, tiny, word_tokenizer

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(
    not can_pack(torch.bfloat16, CPU), reason="this processor does not multiply bfloat16"
)


@needs_bf16
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(64, 256), (256, 64), (512, 2048), (2048, 512), (33, 130)], ids=str
)
def test_it_is_as_exact_as_what_it_replaces(shape: tuple[int, int], bias: bool, rows: int) -> None:
    """A thousand random inputs against float64."""
    torch.manual_seed(0)
    module = nn.Linear(*reversed(shape), bias=bias, dtype=torch.bfloat16)
    packed, in_float64 = (
        PackedLinear(module.weight.detach(), module.bias),
        deepcopy(module).double(),
    )
    plain_error = packed_error = 0.0
    for _ in range(1000 // rows):
        x = torch.randn(1, rows, shape[1]).bfloat16()
        with torch.inference_mode():
            exact = in_float64(x.double())
            found = packed(x)
            plain_error += float((module(x).double() - exact).square().mean())
            packed_error += float((found.double() - exact).square().mean())
        assert found.shape == exact.shape
        assert found.dtype == torch.bfloat16
    assert 0 < packed_error**0.5 <= 1.1 * plain_error**0.5


@needs_bf16
@some_families
def test_every_family_computes_the_same(name: str) -> None:
    plain = deepcopy(tiny(name).plain).bfloat16()
    packed = deepcopy(plain)
    pack_linears(packed, lambda weight: weight, lambda _: None)
    kinds = [type(module) for module in packed.modules()]
    assert nn.Linear not in kinds
    assert PackedLinear in kinds
    ids = torch.tensor([random_ids(12)])
    with torch.inference_mode():
        exact = deepcopy(plain).float()(ids).logits
        off, own = (
            (model(ids).logits.float() - exact).square().mean().sqrt() for model in (packed, plain)
        )
    assert off <= 1.5 * own
    read = [wrap_model(model, word_tokenizer()).weight_bytes for model in (packed, plain)]
    assert read[0] == read[1]


@needs_bf16
def test_what_is_packed_is_what_the_file_holds() -> None:
    model = load_model(dtype="bfloat16", device="cpu").causal_lm
    layer = model.model.layers[3].mlp.down_proj
    assert type(layer) is PackedLinear
    assert type(model.lm_head) is PackedLinear
    plain = load_model(dtype="float32", device="cpu").causal_lm
    expected = plain.model.layers[3].mlp.down_proj.weight.bfloat16()
    assert torch.equal(layer.weight.to_dense(), expected)
    assert torch.equal(model.lm_head.weight.to_dense(), model.model.embed_tokens.weight)


@needs_bf16
def test_a_weight_is_not_read_where_the_model_maps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its pages would stay in memory beside the copy."""
    seen: list[tuple[int, int]] = []
    original = packed_linear.pack_linears

    def spy(model: Any, read: Any, on_packed: Any) -> None:
        def reading(weight: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = read(weight)
            assert torch.equal(found, weight)
            seen.append((weight.data_ptr(), found.data_ptr()))
            return found

        original(model, reading, on_packed)

    monkeypatch.setattr("d3cli.model.build.pack_linears", spy)
    load_model(str(BUILTIN_PATH), dtype="bfloat16", device="cpu")
    assert len(seen) > 50
    assert all(before != after for before, after in seen)


def test_a_view_at_the_same_address_is_not_the_whole_tensor() -> None:
    """A weight that is a part of a tensor, or transposed, may begin at the tensor's address."""
    state = lazy_state_dict(BUILTIN_PATH, lambda _: False, lambda _: None)
    name = "model.layers.0.self_attn.q_proj.weight"
    whole = state[name][...]
    assert read_again(state, whole).data_ptr() != whole.data_ptr()
    for view in (whole[:64], whole.T):
        assert read_again(state, view) is view
