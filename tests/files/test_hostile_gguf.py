"""Hostile GGUF files, end to end: each gets one clear error, runs no code and stays in bounds."""

import re
from pathlib import Path

import pytest

from tests.forks import Ended, Forks
from tests.gguf_models import write_gguf
from tests.hostile.gguf import REFUSED_GGUF

SECRET = '{"secret": "of no concern to a model"}'


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("good") / "good.gguf", kind="Q8_0").path.read_bytes()


def ask(forks: Forks, folder: Path, data: bytes) -> Ended:
    """Runs a reply from a file with this content."""
    model = folder / "model.gguf"
    model.write_bytes(data)
    ended = forks.run(
        *("generate", model, "--prompt", "Hi.", "--max-tokens", "2", "--device", "cpu"),
        audit=["socket.", "open"],
        cwd=str(folder),
        env={"D3_HOME": str(folder / "home")},
    )
    assert not [event for event in ended.seen if event.startswith("socket.")]
    return ended


@pytest.fixture(scope="module")
def control(forks: Forks, tmp_path_factory: pytest.TempPathFactory, good: bytes) -> Ended:
    """The good file, whose memory the others are compared with."""
    return ask(forks, tmp_path_factory.mktemp("control"), good)


def test_the_good_file_answers(control: Ended) -> None:
    assert control.code == 0, control.err
    assert control.out


@pytest.mark.parametrize("name", REFUSED_GGUF)
def test_a_hostile_file_is_one_clear_error(
    name: str, forks: Forks, tmp_path: Path, good: bytes, control: Ended
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text(SECRET)
    data = REFUSED_GGUF[name](good, outside)
    assert data != good
    ended = ask(forks, tmp_path, data)
    assert ended.code == 1, (ended.code, ended.err)
    assert not ended.out
    assert ended.most_resident < 2 * control.most_resident
    assert not [event for event in ended.seen if str(outside) in event]
    assert "Traceback" not in ended.err and "internal error" not in ended.err, ended.err
    [error] = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(error) < 700
    assert re.search("^hint: .", ended.err, re.MULTILINE), ended.err
    others = [line for line in ended.err.splitlines() if not line.startswith(("error: ", "hint: "))]
    assert all(line.startswith(("model: ", "note: ")) for line in others), others


def test_a_full_disk_is_not_blamed_on_the_file(forks: Forks, tmp_path: Path, good: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(good)
    arguments = ("generate", tmp_path / "x.gguf", "--prompt", "Hi.")
    ended = forks.run(*arguments, env={"D3_HOME": str(tmp_path)}, limits={"FSIZE": 0})
    assert ended.code == 1
    assert "needs a small temporary file, which cannot be written: File too large" in ended.err
    assert "download" not in ended.err
