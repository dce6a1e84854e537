"""`d3 models verify` compares files with the hub's checksums, wherever they are stored."""

import hashlib
import shutil
from pathlib import Path

import pytest

from d3cli.base.errors import ModelError
from d3cli.files.checksums import METADATA, verify
from d3cli.files.vet_files import files_read
from tests.conftest import BUILTIN_PATH, D3, check


def sums(file: Path) -> str:
    data = file.read_bytes()
    if file.suffix == ".safetensors":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def files_of(model: Path) -> list[Path]:
    return list(files_read(model))


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """A model as `hf download --local-dir` leaves it."""
    model = tmp_path / "fox"
    shutil.copytree(BUILTIN_PATH, model)
    (model / METADATA).mkdir(parents=True)
    for file in BUILTIN_PATH.iterdir():
        text = f"{'0' * 40}\n{sums(file)}\n1700000000.0\n"
        (model / METADATA / f"{file.name}.metadata").write_text(text)
    return model


def test_every_file_that_is_read_is_compared(downloaded: Path) -> None:
    shares: list[float] = []
    # Without the files that only the built-in model has.
    assert verify(files_of(downloaded), shares.append) == 6
    assert shares[-1] == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja"])
def test_one_flipped_bit_is_found(downloaded: Path, name: str) -> None:
    data = bytearray((downloaded / name).read_bytes())
    data[-10] ^= 1
    (downloaded / name).write_bytes(data)
    with pytest.raises(ModelError, match=f"{name} is not the file that was published"):
        verify(files_of(downloaded))


@pytest.mark.parametrize("text", ["", "x\ny\n", f"{'0' * 40}\n{'../' * 20}\n", "\xff\n\xff"])
def test_without_a_checksum_nothing_is_called_verified(downloaded: Path, text: str) -> None:
    (downloaded / METADATA / "config.json.metadata").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json has no checksum"):
        verify(files_of(downloaded))


def test_the_command_says_what_cannot_be_verified(d3: D3, tmp_path: Path) -> None:
    shutil.copytree(BUILTIN_PATH, tmp_path / "m")
    check(d3("models", "verify", tmp_path / "m"), 2, "have no checksum to compare them with")
    check(d3("models", "verify", "demo"), 2, "the built-in model has no checksum to compare it")
    check(d3("models", "verify", "org/name"), 1, "org/name is not on disk")
    check(d3("models", "verify", "qwen-3-4x"), 2, "there is no model or directory")
    check(d3("models", "verify"), 2, "Missing argument")


def test_a_file_that_did_not_come_with_the_others_fails(d3: D3, downloaded: Path) -> None:
    (downloaded / METADATA / "config.json.metadata").unlink()
    says = "config.json has no checksum, and other files of the model have"
    check(d3("models", "verify", downloaded), 1, says)


def test_the_command_reads_no_file_outside_the_model(d3: D3, downloaded: Path) -> None:
    (downloaded / "config.json").rename(downloaded.parent / "config.json")
    (downloaded / "config.json").symlink_to(downloaded.parent / "config.json")
    check(d3("models", "verify", downloaded), 1, "is a link to a file outside the model")


def test_the_command_prints_one_line(d3: D3, downloaded: Path) -> None:
    result = d3("models", "verify", downloaded)
    assert result.code == 0, result.err
    assert result.out == f"{downloaded}: all 6 files match their checksums\n"


def test_templates_in_a_folder_and_weak_etags_and_own_notes(downloaded: Path) -> None:
    folder = downloaded / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_text("{{ messages }}")
    (downloaded / "notes.txt").write_text("my own")
    with pytest.raises(ModelError, match=r"rag\.jinja has no checksum"):
        verify(files_of(downloaded))
    (downloaded / METADATA / folder.name).mkdir()
    known = downloaded / METADATA / folder.name / "rag.jinja.metadata"
    known.write_text(f'{"0" * 40}\nW/"{sums(folder / "rag.jinja")}"\n1.0\n')
    assert verify(files_of(downloaded)) == 7
