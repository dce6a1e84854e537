"""Absurd numbers in a GGUF file's metadata: loading plans with them or refuses them, no more."""

import contextlib
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from d3cli.base.errors import D3Error, ModelError
from d3cli.files.gguf_header import read_header
from d3cli.files.names import find_model
from d3cli.model.checkpoint import load_tokenizer, open_checkpoint
from d3cli.model.load_plan import check_model
from tests.gguf_bytes import F32, I32, U32, text
from tests.gguf_models import FAMILIES, tokenizer_keys, write_gguf

ABSURD = {
    U32: [struct.pack("<I", n) for n in (0, 1, 3, 7, 1000, 100_000, 2**31, 2**32 - 1)],
    I32: [struct.pack("<i", n) for n in (0, -1, 2**31 - 1)],
    F32: [struct.pack("<f", n) for n in (0.0, -1.0, float("nan"), float("inf"), 1e30)],
}


def with_number(data: bytes, key: str, value: bytes | None = None) -> tuple[int, bytes]:
    """The type of a key's value, and the file with another value of that size."""
    at = data.index(text(key)) + len(text(key))
    (kind,) = struct.unpack_from("<I", data, at)
    changed = data if value is None else data[: at + 4] + value + data[at + 4 + len(value) :]
    return kind, changed


def plan(path: Path) -> None:
    """Does all that happens before weights are read. Errors of d3 are fine, others are not."""
    with contextlib.suppress(D3Error):
        files = find_model(str(path))
        check_model(open_checkpoint(files).description, device="cpu", dtype="float32")
        load_tokenizer(files)


@pytest.mark.parametrize("key", ["embedding_length", "attention.head_count"])
@pytest.mark.parametrize("value", [0, 1, 2**31])
def test_sizes_that_contradict_each_other(tmp_path: Path, key: str, value: int) -> None:
    file = write_gguf(tmp_path / "x.gguf", "phi3-partial", "Q4_0")
    changed = with_number(file.path.read_bytes(), f"phi3.{key}", struct.pack("<I", value))[1]
    file.path.write_bytes(changed)
    with pytest.raises(D3Error):
        check_model(open_checkpoint(find_model(str(file.path))).description, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama3-rope", "qwen3moe", "gemma3", "phi3-longrope", "stablelm", "gpt2"]
)
def test_every_number_may_be_absurd(tmp_path: Path, name: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", name, "Q4_0").path
    whole = path.read_bytes()
    tried = 0
    for key in read_header(path).metadata:
        for value in ABSURD.get(with_number(whole, key)[0], ()):
            path.write_bytes(with_number(whole, key, value)[1])
            plan(path)
            tried += 1
    assert tried > 50


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("llama", {"context_length": 1}, "llama.context_length 1, which is too short"),
        ("llama", {"context_length": None}, "lacks the key llama.context_length"),
        ("llama", {"block_count": 0}, "llama.block_count 0, but it must be"),
        ("llama", {"block_count": "x"}, 'llama.block_count "x", but it must be'),
        ("llama", {"attention.head_count": 7}, "llama.attention.head_count 7 does not divide"),
        ("qwen2", {"attention.head_count": 7}, "qwen2.attention.head_count 7 does not divide"),
        ("llama", {"attention.head_count_kv": 3}, "llama.attention.head_count_kv 3 does not"),
        ("llama", {"attention.head_count_kv": [2, 2, 2, 2]}, "llama.attention.head_count_kv for"),
        ("llama", {"embedding_length": 128}, "the rows of token_embd.weight have 256"),
        ("gpt2", {"embedding_length": 250}, "gpt2.attention.head_count 4 does not divide"),
        ("llama", {"attention.key_length": 63}, "llama.attention.key_length 63, but rotary"),
        ("gpt2", {"attention.layer_norm_epsilon": None}, "lacks the key gpt2.attention.layer"),
        ("llama", {"expert_count": 4}, "lacks the key llama.expert_used_count"),
        ("mixtral", {"expert_used_count": 9}, "llama.expert_used_count 9, more than"),
        ("qwen3moe", {"expert_used_count": 0}, "qwen3moe.expert_used_count 0, but it must be"),
        ("qwen3moe", {"expert_count": None}, "lacks the key qwen3moe.expert_count"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_impossible_size_is_called_by_its_key(
    tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    architecture = FAMILIES[name][0]
    changed = {f"{architecture}.{key}": value for key, value in changes.items()}
    file = write_gguf(tmp_path / "x.gguf", name, metadata=changed)
    with pytest.raises(ModelError, match=re.escape(says)) as error:
        open_checkpoint(find_model(str(file.path)))
    assert "config.json" not in f"{error.value.message} {error.value.hint}"


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    tokens = [*tokenizer_keys()["tokenizer.ggml.tokens"], "one", "two"]
    file = write_gguf(tmp_path / "x.gguf", metadata={"tokenizer.ggml.tokens": tokens})
    with pytest.raises(ModelError, match="has 290 tokens, but embeddings for 288"):
        open_checkpoint(find_model(str(file.path)))
