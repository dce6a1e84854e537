"""Hostile models: each gets one clear error, runs no code, opens no socket, stays in bounds."""

import json
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BUILTIN_PATH
from tests.forks import Ended, Forks
from tests.hostile import HARMLESS, REFUSED, Change

# These take long to build or to refuse.
LONG = {"a_template_that_loops", "a_header_of_a_million_tensors"}
# Each runs a model to the end; the others are slow.
QUICK_HARMLESS = {"code_for_the_tokenizer", "settings_that_name_code", "files_that_nobody_reads"}
SECRET = '{"secret": "of no concern to a model"}'


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.json").write_text(SECRET)
    return folder


def good_model(folder: Path) -> Path:
    model = folder / "model"
    shutil.copytree(BUILTIN_PATH, model, ignore=shutil.ignore_patterns("schedule.json", "held*"))
    return model


def slow(names: Iterable[str], slow_ones: Collection[str]) -> list[Any]:
    """The names as parameters, of which some are marked slow."""
    marks = {name: [pytest.mark.slow] if name in slow_ones else [] for name in names}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


def ask(forks: Forks, tmp_path: Path, change: Change, outside: Path) -> Ended:
    model = good_model(tmp_path)
    change(model, outside)
    ended = forks.run(
        *("generate", model, "Hi.", "--max-tokens", "2", "--alpha", "off", "--device", "cpu"),
        audit=["socket.", "open"],
        cwd=str(tmp_path),
        env={"D3_HOME": str(tmp_path / "home")},
    )
    assert not (outside / "sentinel").exists()
    assert not [event for event in ended.seen if event.startswith("socket.")]
    assert not [event for event in ended.seen if str(outside) in event]
    assert "Traceback" not in ended.err
    return ended


@pytest.fixture(scope="module")
def good(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A control whose memory the others are compared with."""
    return ask(forks, tmp_path_factory.mktemp("good"), lambda *_: None, Path("/nowhere"))


def test_a_good_model_answers_and_the_hook_sees_what_it_opens(good: Ended) -> None:
    assert good.code == 0, good.err
    assert any("config.json" in event for event in good.seen)


def test_there_are_enough_of_them() -> None:
    assert len(REFUSED) + len(HARMLESS) >= 110


@pytest.mark.parametrize("name", slow(REFUSED, LONG))
def test_a_hostile_model_gives_one_clear_line(
    name: str, forks: Forks, tmp_path: Path, outside: Path, good: Ended
) -> None:
    ended = ask(forks, tmp_path, REFUSED[name], outside)
    assert ended.most_resident < 2 * good.most_resident
    assert ended.code in (1, 2), (ended.code, ended.err)
    assert not ended.out
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.err
    assert len(errors[0]) < 700
    assert "internal error" not in ended.err, ended.err
    assert re.search("^hint: .", ended.err, re.MULTILINE), ended.err
    others = [line for line in ended.err.splitlines() if not line.startswith(("error: ", "hint: "))]
    assert all(line.startswith(("model: ", "note: ")) for line in others), others


@pytest.mark.parametrize("name", slow(HARMLESS, HARMLESS.keys() - QUICK_HARMLESS))
def test_a_model_that_only_looks_hostile_runs(
    name: str, forks: Forks, tmp_path: Path, outside: Path
) -> None:
    ended = ask(forks, tmp_path, HARMLESS[name], outside)
    assert ended.code == 0, ended.err
    assert ended.out.strip()


def test_links_within_one_repository_of_the_hub_s_cache_are_followed(
    forks: Forks, tmp_path: Path
) -> None:
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in good_model(tmp_path).iterdir():
        shutil.copy(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    ended = forks.run("generate", snapshot, "Hi.", "--max-tokens", "2", "--device", "cpu")
    assert ended.code == 0, ended.err


def test_harmless_json_is_read_unchanged(tmp_path: Path) -> None:
    from d3cli.files.json_files import read_json

    (tmp_path / "config.json").write_text(json.dumps({"a": [{"b": [1, {"c": None}]}]}))
    assert read_json(tmp_path / "config.json") == {"a": [{"b": [1, {"c": None}]}]}
    assert read_json(tmp_path / "none.json") == {}
