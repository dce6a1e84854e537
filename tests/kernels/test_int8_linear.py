"""The LM head in 8 bits: exact up to rounding, in every family, and counted in bytes."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from d3cli.base.errors import spelled
from d3cli.files.safetensors import describe_directory
from d3cli.kernels.int8_linear import FEW, MULTIPLE, EightBitLinear, quantize_head
from d3cli.model.load import load_model
from d3cli.model.memory import predict_memory
from d3cli.model.wrap import wrap_model
from tests.conftest import BUILTIN_PATH
from tests.families import random_ids, some_families, tiny, word_tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, FEW + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_each_weight_is_off_by_half_a_step_at_most(
    dtype: torch.dtype, rows: int, bias: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(128, 2100, bias=bias, dtype=dtype)  # more than one chunk
    with torch.no_grad():
        plain.weight[7] = 0  # a token that training never saw
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
    """The logits pass through what the family does after the head."""
    plain = deepcopy(tiny(name).plain)
    small = deepcopy(plain)
    if plain.get_output_embeddings().in_features % MULTIPLE:
        pytest.skip("the kernel does not take rows of this length")
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


@pytest.mark.parametrize("choice", ["auto", "off"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_its_memory_is_predicted(choice: str, dtype: str) -> None:
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


def test_rows_that_the_kernel_would_read_past_are_refused() -> None:
    with pytest.raises(ValueError, match="40"):
        EightBitLinear(torch.zeros(9, 40), None, lambda weight: weight)


def test_no_rows_at_all() -> None:
    small = EightBitLinear(torch.ones(9, 64), None, lambda weight: weight)
    assert small(torch.zeros(1, 0, 64)).shape == (1, 0, 9)


def test_a_note_says_so() -> None:
    assert any("8 bits" in spelled(note) for note in load_model(quantization="bnb-4bit").notes)
    assert not any("8 bits" in spelled(note) for note in load_model().notes)
