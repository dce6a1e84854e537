"""Linears that are not quantized: as exact as torch's own, in every family."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from d3cli.files.lazy_weights import lazy_state_dict, read_again
from d3cli.files.safetensors import describe_directory
from d3cli.kernels import joint_linear
from d3cli.kernels.float_linear import FloatLinear, place_linears
from d3cli.kernels.joint_linear import place_and_join
from d3cli.kernels.plan import Form, Kernel, KernelPlan
from d3cli.kernels.products import FOR_ONE_ROW, PACKED, Product, Products
from d3cli.model.load import load_model
from d3cli.model.wrap import wrap_model
from tests.conftest import BUILTIN_PATH
from tests.families import random_ids, some_families, tiny, word_tokenizer
from tests.kernels.conftest import KeepChoices, needs_packing

FORM = Form(torch.bfloat16, torch.device("cpu"))
BY_PRODUCT = {
    Product.LINEAR: Products(),
    Product.WITHOUT_ONEDNN: Products(*[Product.WITHOUT_ONEDNN] * 4),
    Product.MV: Products(one=Product.MV),
    Product.FLOAT32: Products(few=Product.FLOAT32, some=Product.FLOAT32, many=Product.FLOAT32),
    Product.WEIGHT_FIRST: Products(few=Product.WEIGHT_FIRST, some=Product.WEIGHT_FIRST),
    Product.PACKED: PACKED,
    Product.PACKED_FOUR: replace(PACKED, one=Product.PACKED_FOUR),
}
each_product = pytest.mark.parametrize(
    "product",
    [
        pytest.param(product, marks=needs_packing if product.packed else ())
        for product in Product
        if product is not Product.LINEAR
    ],
    ids=str,
)


@pytest.fixture
def _small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has products chosen for the small weights of a test's model."""
    monkeypatch.setattr("d3cli.kernels.plan.TINY", 0)


def plan_with(products: Products) -> KernelPlan:
    return KernelPlan(FORM, None, Kernel(products.one), lambda *_: products)


def errors(
    product: Product, shape: tuple[int, int], bias: bool, inputs: int
) -> tuple[float, float]:
    """RMS errors against float64: a product's, and those of `nn.Linear`."""
    torch.manual_seed(0)
    module = nn.Linear(*reversed(shape), bias=bias, dtype=torch.bfloat16)
    own = FloatLinear(module.weight.detach(), module.bias, BY_PRODUCT[product])
    squares, rows = [0.0, 0.0], 1 if product in FOR_ONE_ROW else 5
    with torch.inference_mode():
        all_rows = torch.randn(inputs // rows, 1, rows, shape[1]).bfloat16()
        all_exact = deepcopy(module).double()(all_rows.double())  # at once, which is faster
        for x, exact in zip(all_rows, all_exact, strict=True):
            for number, found in enumerate((own(x), module(x))):
                assert found.shape == exact.shape
                assert found.dtype == torch.bfloat16
                squares[number] += float((found.double() - exact).square().mean())
    return squares[0] ** 0.5, squares[1] ** 0.5


@each_product
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(64, 256), (512, 64), (33, 130)], ids=str)
def test_it_is_as_exact_as_what_it_replaces(
    shape: tuple[int, int], bias: bool, product: Product
) -> None:
    """A thousand random inputs against float64."""
    own, plain = errors(product, shape, bias, 1000)
    assert 0 < own <= 1.1 * plain


@pytest.mark.slow
@each_product
@pytest.mark.parametrize("shape", [(512, 2048), (2048, 512), (256, 8192), (576, 1536)], ids=str)
def test_it_is_as_exact_with_the_shapes_of_real_models(
    shape: tuple[int, int], product: Product
) -> None:
    own, plain = errors(product, shape, False, 1000)
    assert 0 < own <= 1.1 * plain


def test_the_number_of_rows_chooses() -> None:
    products = Products(one=Product.MV, some=Product.FLOAT32)
    chosen = [products.for_rows(rows) for rows in (1, 2, 4, 5, 16, 17, 500)]
    torchs, wide = Product.LINEAR, Product.FLOAT32
    assert chosen == [Product.MV, torchs, torchs, wide, wide, torchs, torchs]


@pytest.mark.parametrize(
    "wrong",
    [
        {"one": Product.PACKED},
        {"many": Product.PACKED},
        {"few": Product.MV},
        {"one": Product.WEIGHT_FIRST},
        {"many": Product.WEIGHT_FIRST},
        {"one": Product.PACKED, "few": Product.PACKED_FOUR},
    ],
    ids=str,
)
def test_products_that_no_weight_can_have_together(wrong: dict[str, Product]) -> None:
    with pytest.raises(ValueError, match=r"packed|for one row|for some rows"):
        Products(**wrong)


@pytest.mark.usefixtures("_small_weights_too")
@pytest.mark.parametrize(
    "product", [Product.MV, pytest.param(Product.PACKED, marks=needs_packing)], ids=str
)
@some_families
def test_every_family_computes_the_same(name: str, product: Product) -> None:
    plain = deepcopy(tiny(name).plain).bfloat16()
    placed = deepcopy(plain)
    place_and_join(placed, plan_with(BY_PRODUCT[product]), lambda weight: weight, lambda _: None)
    kinds = [type(module) for module in placed.modules()]
    assert FloatLinear in kinds
    ids = torch.tensor([random_ids(1 if product in FOR_ONE_ROW else 12)])
    with torch.inference_mode():
        exact = deepcopy(plain).float()(ids).logits
        off, own = (
            (model(ids).logits.float() - exact).square().mean().sqrt() for model in (placed, plain)
        )
    assert off <= 1.5 * own
    read = [wrap_model(model, word_tokenizer()).weight_bytes for model in (placed, plain)]
    assert read[0] == read[1]


@needs_packing
def test_what_is_packed_is_what_the_file_holds(keep_choices: KeepChoices) -> None:
    keep_choices(describe_directory("demo", BUILTIN_PATH), PACKED)
    model = load_model(dtype="bfloat16", device="cpu").causal_lm
    layer = model.model.layers[3].mlp.down_proj
    assert layer.weight.is_mkldnn
    assert model.lm_head.weight.is_mkldnn
    plain = load_model(dtype="float32", device="cpu").causal_lm
    expected = plain.model.layers[3].mlp.down_proj.weight.bfloat16()
    assert torch.equal(layer.weight.to_dense(), expected)
    assert torch.equal(model.lm_head.weight.to_dense(), model.model.embed_tokens.weight)


@pytest.mark.usefixtures("_small_weights_too")
def test_a_weight_that_is_not_packed_stays_where_it_is() -> None:
    model = deepcopy(tiny("llama").plain).bfloat16()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    place_linears(model, plan_with(Products(one=Product.MV)), refuse, refuse)
    after = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert before == after
    assert type(model.model.layers[0].mlp.up_proj) is FloatLinear


def refuse(_: object) -> Any:
    raise AssertionError


@needs_packing
def test_a_weight_is_not_read_where_the_model_maps_it(
    monkeypatch: pytest.MonkeyPatch, keep_choices: KeepChoices
) -> None:
    """Otherwise its pages would stay in memory beside the copy."""
    keep_choices(describe_directory("demo", BUILTIN_PATH), PACKED)
    seen: list[tuple[int, int]] = []
    original = joint_linear.place_and_join

    def spy(model: Any, plan: KernelPlan, read: Any, on_packed: Any) -> None:
        def reading(weight: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = read(weight)
            assert torch.equal(found, weight)
            seen.append((weight.data_ptr(), found.data_ptr()))
            return found

        original(model, plan, reading, on_packed)

    monkeypatch.setattr("d3cli.model.build.place_and_join", spy)
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
