"""Weights "for decay": nested where a model and the machine allow it, else as they are stored."""

from pathlib import Path

import pytest

from d3cli.files.safetensors import describe_directory
from d3cli.kernels.device import Dtype
from d3cli.model.load import check_model, load_model
from tests.conftest import BUILTIN_PATH
from tests.families import CONFIGS, random_model, word_tokenizer


def form_of(path: Path, dtype: Dtype = "auto") -> str | None:
    plan = check_model(
        describe_directory(path.name, path), quantization="for decay", device="cpu", dtype=dtype
    )
    return plan.kernels.form.quantization


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", "nested"), ("bfloat16", "nested"), ("float32", None), ("float16", None)],
)
def test_the_dtype_decides(dtype: Dtype, expected: str | None) -> None:
    assert form_of(BUILTIN_PATH, dtype) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt2", "nested"), ("mixtral", None), ("opt", None)],  # experts; no separate sublayers
)
def test_the_family_decides(name: str, expected: str | None, tmp_path: Path) -> None:
    random_model(CONFIGS[name], "eager").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert form_of(tmp_path) == expected


def test_a_model_for_decay_has_low_planes_and_its_alpha_drops_them() -> None:
    model = load_model(quantization="for decay", device="cpu")
    assert model.weight_bytes.is_nested
    assert model.origin.key is not None and model.origin.key.quantization == "nested"
