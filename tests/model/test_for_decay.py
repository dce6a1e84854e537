"""Weights for decay: nested where a model and the machine allow it, else as they are stored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from d3cli.files.safetensors import describe_directory
from d3cli.kernels.device import Dtype
from d3cli.kernels.plan import Form
from d3cli.model.load import load_model
from d3cli.model.load_plan import check_model
from tests.conftest import BUILTIN_PATH
from tests.families import CONFIGS, random_model, word_tokenizer


def form_of(path: Path, **options: Any) -> Form:
    description = describe_directory(path.name, path)
    return check_model(description, for_decay=True, device="cpu", **options).kernels.form


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", "nested"), ("bfloat16", "nested"), ("float32", None), ("float16", None)],
)
def test_the_dtype_decides(dtype: Dtype, expected: str | None) -> None:
    assert form_of(BUILTIN_PATH, dtype=dtype).quantization == expected


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_what_was_asked_for_comes_first(quantization: Any) -> None:
    assert form_of(BUILTIN_PATH, quantization=quantization).quantization == quantization


@pytest.mark.parametrize(
    ("hidden_size", "expected"), [(64, torch.bfloat16), (56, torch.float32)], ids=["fits", "unfit"]
)
def test_only_nested_weights_are_bfloat16_where_it_is_slow(
    hidden_size: int, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights whose shapes do not fit stay as they would be without decay."""
    monkeypatch.setattr("d3cli.kernels.device.cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr("d3cli.kernels.choices.KernelChoices.bfloat16_is_fast", lambda _: False)
    config = LlamaConfig(
        vocab_size=131,
        hidden_size=hidden_size,
        intermediate_size=120,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    form = form_of(tmp_path)
    assert form.dtype == expected
    assert form.quantization == ("nested" if expected == torch.bfloat16 else None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt2", "nested"), ("mixtral", None), ("opt", None)],  # experts; no separate sublayers
)
def test_the_family_decides(name: str, expected: str | None, tmp_path: Path) -> None:
    random_model(CONFIGS[name], "eager").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert form_of(tmp_path).quantization == expected


def test_a_model_for_decay_has_low_planes_and_its_alpha_drops_them() -> None:
    model = load_model(for_decay=True, device="cpu")
    assert model.weight_bytes.is_nested
    assert model.origin.key is not None and model.origin.key.quantization == "nested"
