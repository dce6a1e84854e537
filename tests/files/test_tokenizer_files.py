"""Tokenizer files that are missing or incomplete: the error names the file that is there."""

import json
from pathlib import Path

import pytest

from d3cli.base.errors import ModelError
from d3cli.files import tokenizer_files
from d3cli.files.names import ModelFiles
from d3cli.files.tokenizer_files import refuse_without_tokenizer
from d3cli.model.checkpoint import load_tokenizer
from tests.conftest import D3, check
from tests.copies import stranger

SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
TIKTOKEN = b"IQ== 0\nIg== 1\n"


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    """A model without tokenizer.json."""
    model = stranger(tmp_path / "fox")
    (model / "tokenizer.json").unlink()
    return model


def error_of(model: Path) -> ModelError:
    with pytest.raises(ModelError) as got:
        load_tokenizer(ModelFiles("fox", model, str(model)))
    for text in (got.value.message, got.value.hint):
        assert "tiktoken" not in text
        assert "damaged" not in text
    return got.value


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"])
def test_a_sentencepiece_model_needs_packages(
    fox: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_files, "_is_installed", lambda _: False)
    (fox / name).write_bytes(SENTENCEPIECE)
    error = error_of(fox)
    assert f"only {name}, which is read with the packages sentencepiece" in error.message
    assert "pip install sentencepiece protobuf; or use a repository" in error.hint
    monkeypatch.setattr(tokenizer_files, "_is_installed", lambda module: module == "sentencepiece")
    assert "pip install protobuf;" in error_of(fox).hint
    monkeypatch.setattr(tokenizer_files, "_is_installed", lambda _: True)
    refuse_without_tokenizer("fox", fox)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "has no tokenizer: tokenizer.json is missing"),
        ({"vocab.json": b'{"a": 0}'}, "vocab.json, but neither merges.txt nor tokenizer.json"),
        ({"merges.txt": b"a b\n"}, "no tokenizer.json, only merges.txt"),
        ({"vocab.json": b'{"zz": 0}', "merges.txt": b""}, "vocab.json and merges.txt cannot be"),
        ({"tekken.json": b"{}"}, "tekken.json cannot be used"),
        ({"tokenizer.model": TIKTOKEN}, "only tokenizer.model, which is not a SentencePiece model"),
        ({"tokenizer.model.v3": b""}, "only tokenizer.model.v3, which is not a SentencePiece"),
    ],
    ids=lambda value: "+".join(value) or "none" if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("of", ["LlamaTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_the_file_that_is_there_and_the_one_that_is_missing_are_named(
    fox: Path, files: dict[str, bytes], problem: str, of: str
) -> None:
    (fox / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": of}))
    for name, data in files.items():
        (fox / name).write_bytes(data)
    error = error_of(fox)
    assert problem in error.message
    assert "tokenizer.json" in error.hint


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "tokenizer.json", "config.json", "model.safetensors"]
)
def test_a_clone_without_git_lfs(fox: Path, d3: D3, name: str) -> None:
    (fox / name).write_bytes(POINTER)
    result = d3("generate", fox, "Hi.")
    check(result, 1, f"{name} is a Git LFS pointer")
    assert "git lfs pull" in result.err


def test_a_model_without_tokenizer_is_refused_before_its_weights_are_read(
    fox: Path, d3: D3
) -> None:
    check(d3("generate", fox, "Hi."), 1, "has no tokenizer: tokenizer.json is missing")
