"""A split GGUF model whose parts are links, as in the hub's cache, and links to its parts."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from d3cli.files.names import ModelFiles, find_model, model_identity
from tests.conftest import D3
from tests.gguf_bytes import tiny, write_split

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
COMMIT = "0" * 40


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[list[Path]]:
    """The parts of a split model in the hub's cache: links to blobs that checksums name."""
    repository = Path(os.environ["HF_HUB_CACHE"]) / "models--someone--split"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    links = []
    for part in write_split(tmp_path, "fox"):
        name = hashlib.sha256(part.read_bytes()).hexdigest()
        part.rename(blobs / name)
        links.append(snapshot / part.name)
        links[-1].symlink_to(f"../../blobs/{name}")
    try:
        yield links
    finally:
        shutil.rmtree(repository)


def same(files: ModelFiles, parts: list[Path]) -> bool:
    assert files.gguf is not None
    return files.gguf.paths == tuple(parts) and len(files.gguf.tensors) == len(tiny().tensors)


def test_each_way_to_name_it_finds_all_parts(parts: list[Path]) -> None:
    for name in ("someone/split", str(parts[0].parent), *map(str, parts)):
        assert same(find_model(name, offline=True), parts)
    assert model_identity(str(parts[2])) == model_identity(str(parts[0]))


def test_links_to_a_part_lead_to_the_others(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "one.gguf").symlink_to(parts[0])
    (tmp_path / "other.gguf").symlink_to("one.gguf")
    for name in ("one.gguf", "other.gguf"):
        files = find_model(str(tmp_path / name))
        assert same(files, parts)
        assert files.fingerprint() == find_model(str(parts[0])).fingerprint()


def test_a_fingerprint_is_that_of_the_files(parts: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copy(part, tmp_path / part.name)) for part in parts]
    fingerprint = find_model(str(parts[0])).fingerprint()
    assert find_model(str(copies[0])).fingerprint() == fingerprint


def test_it_is_listed_once_and_verified(parts: list[Path], d3: D3) -> None:
    result = d3("models", parts[0].parent)
    assert [line.split("\t")[:2] for line in result.out.splitlines()] == [[str(parts[0]), "llama"]]
    verified = "someone/split: all 3 files match their checksums\n"
    assert d3("models", "verify", "someone/split").out == verified
    parts[1].resolve().write_bytes(parts[1].read_bytes()[:-1] + b"?")
    assert "its checksum differs" in d3("models", "verify", "someone/split").err
