"""The bounded reader: each problem is one sentence of the caller's error class."""

import io
import os
from pathlib import Path

import pytest

from d3cli.base.bounded_files import MIB, FileKind
from d3cli.base.errors import TranscriptError

RECIPE = FileKind(what="recipe", largest=8, error=TranscriptError)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fox.txt"


def test_a_file_is_read_up_to_its_limit(path: Path) -> None:
    path.write_bytes(b"12345678")
    assert RECIPE.read(path) == RECIPE.find(path) == b"12345678"
    path.write_bytes(b"123456789")
    with pytest.raises(TranscriptError, match=f"the recipe {path} is larger than 8 bytes"):
        RECIPE.read(path)


def test_a_limit_is_reported_in_mib(path: Path) -> None:
    kind = FileKind(what="recipe", largest=2 * MIB, large_hint="cook less")
    path.write_bytes(bytes(2 * MIB + 1))
    with pytest.raises(Exception, match="larger than 2 MiB") as caught:
        kind.read(path)
    assert caught.value.hint == "cook less"  # type: ignore[attr-defined]


def test_a_missing_file_is_none_or_an_error(path: Path) -> None:
    assert RECIPE.find(path) is None
    path.parent.joinpath("a file").touch()
    assert RECIPE.find(path.parent / "a file" / "inside") is None
    with pytest.raises(TranscriptError, match=f"there is no recipe {path}") as caught:
        RECIPE.read(path)
    assert caught.value.hint == "check the path"


def test_irregular_files_are_refused_without_waiting(path: Path) -> None:
    with pytest.raises(TranscriptError, match="is a directory"):
        RECIPE.read(path.parent)
    path.symlink_to("nowhere")
    with pytest.raises(TranscriptError, match="is a broken link"):
        RECIPE.find(path)
    with pytest.raises(TranscriptError, match="is not a regular file"):
        RECIPE.read(Path("/dev/zero"))
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(TranscriptError, match="is not a regular file"):
        RECIPE.read(path.parent / "pipe")


def test_pipes_and_devices_are_read_in_bounds_where_allowed() -> None:
    kind = FileKind(what="recipe", largest=8, pipes=True)
    reading, writing = os.pipe()
    os.write(writing, b"a fox")
    os.close(writing)
    assert kind.read(Path(f"/dev/fd/{reading}")) == b"a fox"
    os.close(reading)
    with pytest.raises(Exception, match="is a device"):
        kind.read(Path("/dev/zero"))
    assert kind.read(Path("/dev/null")) == b""
    reading, writing = os.pipe()
    os.write(writing, b"too long")
    os.write(writing, b".")
    os.close(writing)
    with pytest.raises(Exception, match="larger than 8 bytes"):
        kind.read(Path(f"/dev/fd/{reading}"))
    os.close(reading)
    with pytest.raises(Exception, match="is a directory"):
        kind.read(Path("/"))


def test_a_leading_tilde_is_a_home_directory_where_allowed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("a fox")
    monkeypatch.setenv("HOME", str(path.parent))
    kind = FileKind(what="recipe", largest=8, expand_home=True)
    assert kind.read_text(Path("~/fox.txt")) == "a fox"
    with pytest.raises(Exception, match="cannot be read"):
        kind.read(Path("~nobody-here/fox.txt"))


def test_a_name_that_no_file_can_have_is_an_error() -> None:
    with pytest.raises(TranscriptError, match="cannot be read"):
        RECIPE.read(Path("a\0b"))
    with pytest.raises(TranscriptError, match="cannot be read"):
        RECIPE.read(Path("a" * 5000))


def test_text_is_utf8_with_or_without_a_byte_order_mark(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbffox")
    assert RECIPE.read_text(path) == "fox"
    path.write_bytes(b"\xff")
    with pytest.raises(TranscriptError, match=f"the recipe {path} is not UTF-8 text"):
        RECIPE.read_text(path)


def test_a_stream_has_the_same_limit() -> None:
    assert RECIPE.read_stream(io.BytesIO(b"a fox"), "the text") == b"a fox"
    with pytest.raises(TranscriptError, match="the text is larger"):
        RECIPE.read_stream(io.BytesIO(b"123456789"), "the text")


def test_one_hint_serves_every_problem(path: Path) -> None:
    kind = FileKind(what="recipe", largest=8, hint="fetch it again", missing_hint="fetch it")
    hints = []
    for bad, data in ((path, None), (path.parent, None), (path, b"123456789"), (path, b"\xff")):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(Exception, match="recipe") as caught:
            kind.read_text(bad)
        hints.append(caught.value.hint)  # type: ignore[attr-defined]
    assert hints == ["fetch it", *["fetch it again"] * 3]
