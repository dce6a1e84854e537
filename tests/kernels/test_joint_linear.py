"""Linears that multiply together compute what each computed alone."""

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from d3cli.kernels.float_linear import place_linears
from d3cli.kernels.int4_linear import FourBitLinear
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.joint_linear import (
    JointLinear,
    LinearPart,
    join_linears,
    join_quantized,
    joint_of,
)
from d3cli.kernels.nested_linear import NestedLinear
from d3cli.kernels.plan import Form, Kernel, KernelPlan
from d3cli.kernels.products import PACKED, Product, Products
from d3cli.model.wrap import wrap_model
from tests.families import random_ids, word_tokenizer
from tests.kernels.conftest import needs_packing

CONFIG = LlamaConfig(
    vocab_size=131,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_bias=True,
)


def model() -> Any:
    torch.manual_seed(3)
    return LlamaForCausalLM(CONFIG).bfloat16().eval()


def quantized(make: Callable[[nn.Linear], nn.Module]) -> Any:
    found = model()
    for name, linear in list(found.model.named_modules()):
        if type(linear) is nn.Linear:
            found.model.set_submodule(name, make(linear))
    return found


def int4(linear: nn.Linear) -> nn.Module:
    return FourBitLinear.rounded(linear.weight.detach(), linear.bias, torch.bfloat16)


def nested(linear: nn.Linear) -> nn.Module:
    return NestedLinear.rounded(linear.weight.detach(), linear.bias, torch.bfloat16)


def int8(linear: nn.Linear) -> nn.Module:
    return EightBitLinear(linear.weight.detach(), linear.bias)


def plan_with(products: Products) -> KernelPlan:
    form = Form(torch.bfloat16, torch.device("cpu"))
    return KernelPlan(form, None, Kernel(products.one), lambda *_: products)


def join(found: Any, products: Products) -> None:
    join_linears(found, plan_with(products), lambda weight: weight, lambda _: None)


def joints_of(found: Any) -> list[JointLinear]:
    return [module for module in found.modules() if isinstance(module, JointLinear)]


def logits(found: Any, length: int = 9) -> Tensor:
    with torch.inference_mode():
        return found(torch.tensor([random_ids(length)])).logits


@pytest.mark.parametrize("make", [int4, int8, nested], ids=["int4", "int8", "nested"])
def test_joined_codes_compute_the_same(make: Callable[[nn.Linear], nn.Module]) -> None:
    apart = quantized(make)
    joined = deepcopy(apart)
    join_quantized(joined)
    assert len(joints_of(joined)) == 2 * 2
    for length in (1, 9, 100):  # decode step, few tokens, unpacked weights
        assert torch.allclose(logits(joined, length), logits(apart, length), atol=0.02)
    sizes = [wrap_model(m, word_tokenizer()).weight_bytes for m in (joined, apart)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    "products",
    [
        pytest.param(PACKED, marks=needs_packing, id="packed"),
        pytest.param(Products(), id="plain"),
        pytest.param(Products(one=Product.MV), id="plain, by mv"),
    ],
)
def test_joined_weights_compute_the_same(
    products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d3cli.kernels.plan.TINY", 0)
    apart, joined = model(), model()
    join(joined, products)
    assert len(joints_of(joined)) == 2 * 2
    for length in (1, 9):
        assert torch.allclose(logits(joined, length), logits(apart, length), atol=0.02)
    sizes = [wrap_model(m, word_tokenizer()).weight_bytes for m in (joined, apart)]
    assert sizes[0] == sizes[1]


def test_many_plain_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d3cli.kernels.plan.FEW_TO_COPY", 256 * 128)
    found = model()
    join(found, Products(one=Product.MV))
    assert {joint.product.out_features for joint in joints_of(found)} == {256}  # not 384


def test_the_plan_chooses_one_product_for_linears_of_one_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("d3cli.kernels.plan.TINY", 0)
    monkeypatch.setattr("d3cli.kernels.plan.FEW_TO_COPY", 0)
    asked = []

    def products_of(*shape: int) -> Products:
        asked.append(shape)
        return Products(one=Product.MV)

    plan = replace(plan_with(Products()), float_products=products_of)
    found = model()
    join_linears(found, plan, lambda weight: weight, lambda _: None)
    place_linears(found, plan, lambda weight: weight, lambda _: None)
    assert not joints_of(found)
    assert set(asked) == {(256, 128), (384, 128), (128, 128), (128, 192), (131, 128)}


@pytest.mark.parametrize("make", [int4, nested], ids=["int4", "nested"])
def test_codes_whose_blocks_do_not_end_with_a_part_stay_apart(
    make: Callable[[nn.Linear], nn.Module],
) -> None:
    found = quantized(make)
    layer = found.model.layers[0].self_attn
    torch.manual_seed(1)
    layer.q_proj = make(nn.Linear(128, 96).bfloat16())
    join_quantized(found)
    assert type(layer.q_proj) in (FourBitLinear, NestedLinear)
    assert type(found.model.layers[0].mlp.up_proj) is LinearPart


def test_parts_multiply_once_and_let_go() -> None:
    torch.manual_seed(0)
    product = nn.Linear(8, 10)
    calls: list[int] = []
    product.register_forward_hook(lambda *_: calls.append(1))
    joint = JointLinear(product, (4, 3, 3))
    parts = [LinearPart(joint, number, 8) for number in range(3)]
    assert joint_of(parts) is joint
    assert joint_of(parts[:2]) is None
    assert joint_of([parts[1], parts[0], parts[2]]) is None
    inputs = torch.randn(2, 5, 8)
    with torch.inference_mode():
        expected = product(inputs).split((4, 3, 3), dim=-1)
        calls.clear()
        for _ in range(2):
            assert all(torch.equal(p(inputs), e) for p, e in zip(parts, expected, strict=True))
    assert len(calls) == 2
    gone = weakref.ref(inputs)
    del inputs
    gc.collect()
    assert gone() is None


def test_a_pass_that_ended_between_parts_leaves_nothing_behind() -> None:
    joint = JointLinear(nn.Linear(8, 10), (4, 6))
    first, second = (LinearPart(joint, number, 8) for number in range(2))
    one, other = torch.randn(2, 3, 8)
    with torch.inference_mode():
        first(one)  # the pass ends here
        assert torch.equal(first(other), joint(other)[..., :4])
        assert torch.equal(second(other), joint(other)[..., 4:])
        first(one)
        assert torch.equal(first(one), joint(one)[..., :4])  # again, with the same object
