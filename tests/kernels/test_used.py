"""The kernels that a loaded model is said to run."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from d3cli.files.safetensors import describe_directory
from d3cli.kernels.products import PACKED, Product, Products
from d3cli.kernels.quantization import Quantization
from d3cli.kernels.used import kernels_used
from d3cli.model.load import load_model
from tests.conftest import BUILTIN_PATH
from tests.kernels.conftest import KeepChoices, needs_digits, needs_packing


@pytest.mark.parametrize(
    ("products", "kernel"),
    [
        (Products(), "torch"),
        (Products(one=Product.MV), "torch mv"),
        (Products(many=Product.FLOAT32), "torch (torch in float32 for many tokens)"),
        pytest.param(PACKED, "oneDNN packed", marks=needs_packing),
    ],
)
def test_those_of_the_plan(products: Products, kernel: str, keep_choices: KeepChoices) -> None:
    keep_choices(describe_directory("demo", BUILTIN_PATH), products)
    used = kernels_used(load_model(dtype="bfloat16", device="cpu").causal_lm)
    assert {"128 x 128", "384 x 128", "128 x 384"} < set(used)
    assert set(used.values()) == {kernel}


@pytest.mark.parametrize(
    ("quantization", "kernel"),
    [("int4", "torch int4"), ("int8", "torch int8"), ("nested", "torch int4, two planes")],
)
def test_quantized_ones(quantization: Quantization, kernel: str) -> None:
    used = kernels_used(load_model(quantization=quantization, device="cpu").causal_lm)
    assert used["384 x 128"] == kernel


@needs_digits
def test_packed_int8() -> None:
    model = load_model(quantization="int8", device="cpu").causal_lm
    model.model.layers[0].mlp.down_proj.pack()
    assert kernels_used(model)["128 x 384"] == "oneDNN int8, by digits and torch int8"


def test_a_shape_with_two_kernels() -> None:
    model = load_model(quantization="int4", device="cpu").causal_lm
    layer, plain = model.model.layers[0].mlp, load_model(device="cpu").causal_lm
    layer.down_proj = plain.model.layers[0].mlp.down_proj
    assert kernels_used(model)["128 x 384"] == "torch and torch int4"


def test_gpt2_stores_inputs_first() -> None:
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=50, n_positions=16)
    assert kernels_used(GPT2LMHeadModel(config)) == dict.fromkeys(
        ["24 x 8", "32 x 8", "50 x 8", "8 x 32", "8 x 8"], "torch"
    )
