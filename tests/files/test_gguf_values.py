"""Absurd numbers in a GGUF file's metadata: loading plans with them or refuses them, no more."""

import contextlib
import struct
from pathlib import Path

import pytest

from d3cli.base.errors import D3Error
from d3cli.files.gguf_header import read_header
from d3cli.files.names import find_model
from d3cli.model.checkpoint import load_tokenizer, open_checkpoint
from d3cli.model.load import check_model
from tests.gguf_bytes import F32, I32, U32, text
from tests.gguf_models import write_gguf

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
