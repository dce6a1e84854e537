"""The kernel plan: which kernel serves which weight, and that a loaded model follows it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from d3cli.files.safetensors import Description, TensorInfo, describe_directory
from d3cli.kernels.choice_file import choices_file
from d3cli.kernels.choices import KernelChoices
from d3cli.kernels.float_linear import FloatLinear
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.measured_shapes import float_shapes, measured_shapes
from d3cli.kernels.plan import Form, Kernel, KernelPlan, plan_kernels
from d3cli.kernels.products import PACKED, Product, Products
from d3cli.model.config import parse_config
from d3cli.model.held_weights import head_shape, plan_for
from d3cli.model.load import load_model
from d3cli.model.memory import predict_memory
from tests.conftest import BUILTIN_PATH
from tests.kernels.conftest import (
    KeepChoices,
    forget_choices,
    measured,
    meters,
    needs_digits,
    needs_packing,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def planned(model: Description, form: Form) -> KernelPlan:
    """The plan of a machine on which packed weights are the fastest for every shape."""
    return plan_kernels(
        model, head_shape(parse_config(model)), form, lambda *_: PACKED, lambda *_: True
    )


def described(hidden: int = 2048, heads: int = 32, layers: int = 16, **more: Any) -> Description:
    """A tied Llama."""
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    }
    shapes = {"model.embed_tokens.weight": (128256, hidden)} | {
        f"model.layers.{layer}.mlp.up_proj.weight": (8 * hidden, 4 * hidden)
        for layer in range(layers)
    }
    tensors = tuple(TensorInfo(name, "BF16", shape) for name, shape in shapes.items())
    return Description("m", config | more, tensors)


@pytest.mark.parametrize(
    ("form", "linear", "head"),
    [
        (Form(BF16, CPU), Kernel.PACKED, Kernel.PACKED),
        (Form(FP32, CPU), Kernel.TORCH, Kernel.TORCH),
        (Form(FP16, CPU), Kernel.TORCH, Kernel.TORCH),
        (Form(BF16, GPU), Kernel.TORCH, Kernel.TORCH),
        (Form(BF16, CPU, "bnb-4bit"), Kernel.BNB_NF4, Kernel.TORCH_INT8),
        (Form(BF16, CPU, "bnb-4bit", "off"), Kernel.BNB_NF4, Kernel.PACKED),
        (Form(FP32, CPU, "bnb-4bit"), Kernel.BNB_NF4, Kernel.TORCH_INT8),
        (Form(FP16, CPU, "bnb-4bit"), Kernel.BNB_NF4, Kernel.TORCH),
        (Form(BF16, GPU, "bnb-4bit"), Kernel.BNB_NF4, Kernel.TORCH),
        (Form(BF16, CPU, "bnb-8bit"), Kernel.BNB_INT8, Kernel.PACKED),
        (Form(BF16, CPU, "int4"), Kernel.TORCH_INT4, Kernel.TORCH_INT8),
        (Form(FP32, CPU, "int4"), Kernel.TORCH_INT4, Kernel.TORCH_INT8),
        (Form(BF16, CPU, "nested"), Kernel.TORCH_NESTED, Kernel.TORCH_INT8),
        (Form(BF16, CPU, "int8"), Kernel.TORCH_INT8, Kernel.TORCH_INT8),
        (Form(BF16, CPU, "int4", "off"), Kernel.TORCH_INT4, Kernel.PACKED),
        (Form(BF16, CPU, None, "auto"), Kernel.PACKED, Kernel.TORCH_INT8),
        (Form(BF16, GPU, None, "auto"), Kernel.TORCH, Kernel.TORCH),
    ],
    ids=str,
)
def test_the_table(form: Form, linear: Kernel, head: Kernel) -> None:
    found = planned(described(), form)
    assert found.of_linear(2048, 2048) is linear
    assert found.head is head


class TestExceptions:
    def test_a_shape_that_the_4_bit_kernel_for_cpus_does_not_take(self) -> None:
        on_cpu, on_gpu = (planned(described(), Form(BF16, d, "bnb-4bit")) for d in (CPU, GPU))
        assert on_cpu.of_linear(400, 2048) is Kernel.PACKED
        assert on_gpu.of_linear(400, 2048) is Kernel.BNB_NF4

    def test_shapes_that_torchs_kernels_do_not_take(self) -> None:
        four, eight = (planned(described(), Form(BF16, CPU, kind)) for kind in ("int4", "int8"))
        assert four.of_linear(40, 2048) is four.of_linear(64, 2000) is Kernel.PACKED
        assert eight.of_linear(40, 2048) is Kernel.TORCH_INT8
        assert eight.of_linear(64, 2000) is Kernel.PACKED

    def test_gpt2_stores_inputs_first(self) -> None:
        config = {"model_type": "gpt2", "hidden_size": 64, "vocab_size": 131}
        tensor = TensorInfo("transformer.h.0.mlp.c_fc.weight", "F32", (64, 40))
        found = planned(Description("m", config, (tensor,)), Form(BF16, CPU, "int4"))
        assert not found.quantizes(tensor)

    def test_a_family_outside_the_allow_list_stays_as_transformers_loads_it(self) -> None:
        model = described(model_type="gemma")
        found = planned(model, Form(BF16, CPU, None, "auto"))
        assert found.of_linear(2048, 2048) is found.head is Kernel.TORCH

    def test_weights_that_are_stored_in_4_bits_get_the_head_of_4_bits(self) -> None:
        stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        found = planned(described(quantization_config=stored), Form(BF16, CPU))
        assert found.quantized is Kernel.BNB_NF4
        assert found.head_in_8_bits
        assert not any(map(found.quantizes, described().tensors))

    def test_a_head_that_is_a_small_part_of_a_step(self) -> None:
        found = planned(described(layers=400), Form(BF16, CPU, None, "auto"))
        assert found.head is Kernel.PACKED

    def test_a_head_whose_rows_the_int8_kernel_would_read_past(self) -> None:
        found = planned(described(hidden=2064, heads=24), Form(BF16, CPU, "bnb-4bit"))
        assert not found.head_in_8_bits

    def test_the_heads_own_inputs_count(self) -> None:
        """OPT projects its states to fewer before the head."""
        config = {"model_type": "opt", "hidden_size": 64, "vocab_size": 131}
        for inputs, fits in ((40, False), (32, True)):
            model = Description(
                "m", config | {"word_embed_proj_dim": inputs}, described().tensors[:1]
            )
            assert planned(model, Form(BF16, CPU, None, "auto")).head_in_8_bits == fits

    def test_weights_that_are_too_small_to_matter(self) -> None:
        found = planned(described(), Form(BF16, CPU))
        assert found.of_linear(4, 2048) is Kernel.TORCH


def test_the_shapes_to_measure_are_those_of_bfloat16_products() -> None:
    model, head = described(), (128256, 2048)
    linear = (8 * 2048, 4 * 2048)
    for form, shapes in (
        (Form(BF16, CPU), [linear, head]),
        (Form(FP32, CPU), []),
        (Form(BF16, GPU), []),
        (Form(BF16, CPU, "int4"), []),
        (Form(BF16, CPU, "int4", "off"), [head]),
    ):
        assert float_shapes(model, head, planned(model, form)) == shapes


def test_what_is_measured_for_weights_in_fewer_bits() -> None:
    """Joint products as one shape, and the LM head after the same shape in bfloat16."""
    model, head = described(), (128256, 2048)
    names = ("q_proj", "k_proj", "v_proj")
    parts = [
        TensorInfo(f"model.layers.0.self_attn.{name}.weight", "BF16", (64 * (1 + at), 2048))
        for at, name in enumerate(names)
    ]
    model = replace(model, tensors=(*model.tensors[:2], *parts))
    for kind in ("int8", "int4", "nested"):
        form = Form(BF16, CPU, kind)
        slow_head = plan_kernels(model, head, form, lambda *_: PACKED, lambda *_: False)
        assert slow_head.head is Kernel.PACKED
        layers = [(384, 2048), (8 * 2048, 4 * 2048)]
        small = {("int8", *head), ("packing", *head), *((kind, *shape) for shape in layers)}
        small |= {("packing", *shape) for shape in layers if kind == "int8"}
        assert measured_shapes(model, head, slow_head) == [
            ("bfloat16", *head),
            *sorted(small),
            ("head", *head),
        ]
    assert measured_shapes(model, head, planned(model, Form(FP32, CPU, "int4"))) == []


def test_the_head_stays_in_bfloat16_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until it was measured, memory for bfloat16 is counted."""
    monkeypatch.setenv("D3_KERNELS", "auto")
    model = describe_directory("demo", BUILTIN_PATH)
    form, config = Form(BF16, CPU, "int4"), parse_config(model)
    assert not plan_for(model, config, form).head_in_8_bits
    unknown = predict_memory(model, dtype=BF16, quantization="int4")
    for faster in (True, False):
        choices_file().unlink(missing_ok=True)
        own = meters(lambda *_: measured(Products()), head_in_8_bits=faster)
        choices = KernelChoices(own, lambda: False)
        assert plan_for(model, config, form, choices).head_in_8_bits == faster
        forget_choices()
        assert predict_memory(model, dtype=BF16, quantization="int4").weights <= unknown.weights
        loaded = load_model(dtype="bfloat16", device="cpu", quantization="int4").causal_lm
        assert (type(loaded.lm_head) is EightBitLinear) == faster


def test_a_loaded_model_follows_the_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D3_KERNELS", "auto")
    model = describe_directory("demo", BUILTIN_PATH)
    for kind in ("int8", "int4", "nested"):
        choices = KernelChoices(meters(lambda *_: measured(Products()), rows=4), lambda: False)
        plan_for(model, parse_config(model), Form(BF16, CPU, kind), choices)
        forget_choices()
        loaded = load_model(dtype="bfloat16", device="cpu", quantization=kind).causal_lm
        layer = loaded.model.layers[0]
        products = [layer.self_attn.q_proj.joint.product, layer.mlp.down_proj, loaded.lm_head]
        assert [product.kernel_rows for product in products] == [4, 4, 4]


@needs_digits
def test_a_loaded_model_packs_int8_where_that_was_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("D3_KERNELS", "auto")
    model = describe_directory("demo", BUILTIN_PATH)
    plain = load_model(dtype="bfloat16", device="cpu", quantization="int8")
    choices = KernelChoices(meters(lambda *_: measured(Products()), packed=True), lambda: False)
    plan_for(model, parse_config(model), Form(BF16, CPU, "int8"), choices)
    forget_choices()
    packed = load_model(dtype="bfloat16", device="cpu", quantization="int8")
    layer = packed.causal_lm.model.layers[0]
    products = [layer.self_attn.q_proj.joint.product, layer.mlp.down_proj, packed.causal_lm.lm_head]
    assert all(product.is_packed for product in products)
    assert packed.weight_bytes == plain.weight_bytes
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        found, expected = (model.causal_lm(ids).logits for model in (packed, plain))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.2)


def test_unless_they_were_measured_packed_weights_are_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They take the most memory."""
    monkeypatch.setattr("d3cli.kernels.choices.can_pack", lambda *_: True)
    model = described()
    assert plan_for(model, parse_config(model), Form(BF16, CPU)).head is Kernel.TORCH
    monkeypatch.setenv("D3_KERNELS", "auto")
    assert plan_for(model, parse_config(model), Form(BF16, CPU)).head is Kernel.PACKED


@pytest.mark.parametrize(
    "products",
    [
        Products(),
        Products(one=Product.MV),
        Products(many=Product.FLOAT32),
        pytest.param(PACKED, marks=needs_packing),
        pytest.param(replace(PACKED, one=Product.PACKED_FOUR), marks=needs_packing),
    ],
    ids=lambda products: f"{products.one}, {products.many}",
)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_a_loaded_model_follows_its_plan(
    products: Products, dtype: torch.dtype, keep_choices: KeepChoices
) -> None:
    model = describe_directory("demo", BUILTIN_PATH)
    keep_choices(model, products)
    loaded = load_model(dtype=str(dtype).removeprefix("torch."), device="cpu").causal_lm
    is_plain = dtype == FP32 or products == Products()
    for module in (loaded.model.layers[0].mlp.down_proj, loaded.lm_head):
        assert type(module) is (nn.Linear if is_plain else FloatLinear)
        assert is_plain or module.products == products


@needs_packing
def test_the_prediction_of_memory_follows_the_choice(
    keep_choices: KeepChoices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing reads weights a second time. Until they are measured, that is expected."""
    monkeypatch.setattr("d3cli.kernels.plan.FEW_TO_COPY", 0)  # joining reads them again too
    model = describe_directory("demo", BUILTIN_PATH)
    keep_choices(model, Products())
    plain = predict_memory(model, dtype=BF16)
    keep_choices(model, PACKED)
    packed = predict_memory(model, dtype=BF16)
    assert packed.workspace > plain.workspace
    choices_file().unlink()
    forget_choices()
    assert predict_memory(model, dtype=BF16) == packed
