"""The LM head in 8 bits: exact to its rounding, taken where it is worth it, and counted."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from d3cli.files.safetensors import Description, TensorInfo, describe_directory
from d3cli.kernels.bnb_linear import Quantization
from d3cli.kernels.int8_linear import FEW, MULTIPLE, EightBitLinear, HeadChoice, quantize_head
from d3cli.kernels.plan import Form
from d3cli.model.config import parse_config
from d3cli.model.held_weights import plan_for
from d3cli.model.load import load_model
from d3cli.model.memory import predict_memory
from d3cli.model.wrap import wrap_model
from tests.conftest import BUILTIN_PATH
from tests.families import random_ids, some_families, tiny, word_tokenizer

CPU = torch.device("cpu")


def is_head_quantized(
    model: Description,
    dtype: torch.dtype,
    quantization: Quantization | None,
    choice: HeadChoice | None,
    device: torch.device,
) -> bool:
    form = Form(dtype, device, quantization, choice)
    return plan_for(model, parse_config(model), form).head_in_8_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, FEW + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_each_weight_is_off_by_half_a_step_at_most(
    dtype: torch.dtype, rows: int, bias: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(128, 2100, bias=bias, dtype=dtype)  # more than one chunk
    with torch.no_grad():
        plain.weight[7] = 0  # a token that was never trained
    small = EightBitLinear(plain.weight.detach(), plain.bias, lambda weight: weight)
    steps = plain.weight.abs().amax(dim=1).double() / 127
    held = small.weight.double() * small.scales.double()[:, None]
    slack = 1 + 2 * torch.finfo(dtype).eps * 127
    assert torch.all((held - plain.weight.double()).abs() <= steps[:, None] / 2 * slack + 1e-30)
    x = torch.randn(2, rows, 128).to(dtype)
    expected = x.double() @ held.T + (0 if plain.bias is None else plain.bias.double())
    with torch.inference_mode():
        found = small(x)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, atol=20 * torch.finfo(dtype).eps)


@some_families
def test_every_family_takes_it(name: str) -> None:
    """Its logits go through whatever the family does after the head."""
    plain = deepcopy(tiny(name).plain)
    small = deepcopy(plain)
    if plain.get_output_embeddings().in_features % MULTIPLE:
        pytest.skip("its head has rows that the kernel does not take")
    quantize_head(small, lambda weight: weight)
    assert type(small.get_output_embeddings()) is EightBitLinear
    ids = torch.tensor([random_ids(20)])
    with torch.inference_mode():
        found, expected = small(ids).logits, plain(ids).logits
    assert 0 < float((found - expected).std()) < 0.02 * float(expected.std())


def test_a_step_reads_fewer_bytes() -> None:
    plain = deepcopy(tiny("llama").plain)
    small = deepcopy(plain)
    quantize_head(small, lambda weight: weight)
    before, after = (wrap_model(model, word_tokenizer()).weight_bytes for model in (plain, small))
    vocabulary, hidden = plain.lm_head.weight.shape
    assert before.layers == after.layers
    assert before.fixed - after.fixed == vocabulary * (4 * hidden - hidden - 4)


def described(hidden: int = 2048, heads: int = 32, layers: int = 16) -> Description:
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
    return Description("m", config, tensors)


class TestChoice:
    def test_by_default_with_4_bit_layers_only(self) -> None:
        def chosen(quantization: str | None, choice: str | None) -> bool:
            return is_head_quantized(described(), torch.bfloat16, quantization, choice, CPU)

        assert chosen("bnb-4bit", None)
        assert not chosen("bnb-4bit", "off")
        assert not chosen(None, None)
        assert chosen(None, "auto")
        assert not chosen("bnb-8bit", None)

    def test_not_where_it_is_a_small_part(self) -> None:
        model = described(layers=400)
        assert not is_head_quantized(model, torch.bfloat16, None, "auto", CPU)

    def test_not_on_a_gpu(self) -> None:
        device = torch.device("cuda")
        assert not is_head_quantized(described(), torch.bfloat16, "bnb-4bit", "auto", device)

    def test_not_where_the_kernel_would_read_past_its_rows(self) -> None:
        model = described(hidden=2064, heads=24)
        assert not is_head_quantized(model, torch.bfloat16, "bnb-4bit", "auto", CPU)


@pytest.mark.parametrize("choice", ["auto", "off"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_its_memory_is_foretold(choice: str, dtype: str) -> None:
    model = load_model(dtype=dtype, device="cpu", quantize_head=choice)
    need = predict_memory(
        describe_directory("demo", BUILTIN_PATH),
        dtype=getattr(torch, dtype),
        quantize_head=choice,
    )
    held = model.weight_bytes.total
    table = model.causal_lm.model.embed_tokens.weight.nbytes
    if choice == "auto":
        assert type(model.causal_lm.lm_head) is EightBitLinear
        if dtype == "float32":  # converted, so the embeddings are no longer mapped
            held += table
    assert need.weights == pytest.approx(held, rel=0.001)
