"""Files that d3 0.1.0 wrote are read, and mean the same: ``tests/data/v0.1.0``."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.history import FileHistory

from d3cli.base.settings import state_dir
from d3cli.decode import transcript
from d3cli.depth.calibration_file import file_of
from d3cli.depth.schedule import DepthSchedule
from d3cli.files.fingerprint import fingerprint
from d3cli.model.load import load_model
from tests.conftest import BUILTIN_PATH, D3
from tests.forks import Forks

WRITTEN = Path(__file__).parent / "data" / "v0.1.0"
TRACE = WRITTEN / "trace.json"
CALIBRATED = DepthSchedule(
    16, 0.996334, 4, 5, 4, ("7", "9", "5", "10", "8", "11", "6"), weights=(1.0,) * 7
)


@pytest.fixture
def config() -> None:
    shutil.copy(WRITTEN / "config.toml", os.environ["D3_HOME"])


@pytest.fixture
def calibration() -> Path:
    """The calibration as it would be for the built-in weights of today, which are others."""
    path = file_of("demo")
    path.parent.mkdir(parents=True)
    (entry,) = json.loads((WRITTEN / "calibration.json").read_text())["entries"]
    text = (WRITTEN / "calibration.json").read_text()
    path.write_text(text.replace(entry["fingerprint"], fingerprint(BUILTIN_PATH)))
    return path


@pytest.fixture
def conversation() -> Path:
    path = transcript.path_of("20261126-151651-abc")
    path.parent.mkdir(parents=True)
    return Path(shutil.copy(WRITTEN / "conversation.jsonl", path))


@pytest.mark.usefixtures("config")
def test_the_settings_of_the_file_are_in_force(d3: D3) -> None:
    result = d3("generate", "Who lives in Larkmere?", "--json")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    assert (data["schedule"]["alpha"], data["schedule"]["start"]) == (0.999, 32)
    assert data["stats"]["completion_tokens"] <= 40
    without = d3("generate", "Who lives in Larkmere?", "--json", "--system", "")
    assert json.loads(without.out)["stats"]["prompt_tokens"] < data["stats"]["prompt_tokens"]
    assert d3("profile", "Hi.", "--json", "--max-tokens", "2").code == 0
    rows = [line.split("\t") for line in d3("models").out.splitlines()]
    assert rows[0][:2] == ["*", "demo"]
    assert ["mine", "org/name"] in [row[1:3] for row in rows]


def test_the_calibration_is_used(d3: D3, calibration: Path) -> None:
    before = calibration.read_bytes()
    # The file was made in bfloat16, which not every processor chooses by itself.
    options = ("--dtype", "bfloat16", "--device", "cpu", "--max-tokens", "2", "--json")
    schedule = json.loads(d3("generate", "Hello.", *options).out)["schedule"]
    assert schedule.pop("source") == "calibration"
    assert schedule == CALIBRATED.to_json()
    assert load_model(dtype="bfloat16", device="cpu").schedule() == CALIBRATED
    (shown,) = json.loads(d3("calibrate", "--show", "--json").out)["calibrations"]
    (entry,) = json.loads(before)["entries"]
    assert {key: shown[key] for key in entry} == entry
    assert calibration.read_bytes() == before


def test_the_conversation_is_listed_and_continued(d3: D3, forks: Forks, conversation: Path) -> None:
    messages = transcript.read(conversation)
    lines = [json.loads(line) for line in conversation.read_text().splitlines()]
    assert [(one.role, one.content) for one in messages] == [
        (line["role"], line["content"]) for line in lines
    ]
    assert [one.schedule for one in messages] == [line.get("schedule") for line in lines]
    assert [one.stats for one in messages] == [line.get("stats") for line in lines]
    assert [one.finish_reason for one in messages[2::2]] == ["stop", "length"]
    assert "Who lives in Larkmere?" in d3("chat", "--list").out
    before = conversation.read_text()
    ended = forks.run(
        *("chat", "--continue", "--max-tokens", "2", "--device", "cpu"),
        stdin="And who is Lena?\n/bye\n",
        terminal=True,
        env={"D3_HOME": os.environ["D3_HOME"]},
    )
    assert ended.code == 0, ended.err
    assert conversation.read_text().startswith(before)
    assert transcript.read(conversation)[5].content == "And who is Lena?"


def test_the_trace_has_the_figures_that_it_had(d3: D3) -> None:
    result = d3("profile", "--from", TRACE, "--json")
    assert result.code == 0, result.err
    old, new = json.loads(TRACE.read_text()), json.loads(result.out)
    assert (old.pop("schema"), new["schema"]) == (1, 3)
    assert contains(new, old)
    for form in ("csv", "html"):
        assert d3("profile", "--from", TRACE, "-o", form).code == 0


def contains(new: Any, old: Any) -> bool:
    """Whether everything that was there is still there; numbers as `pytest.approx` compares."""
    match old:
        case dict():
            return all(key in new and contains(new[key], old[key]) for key in old)
        case list():
            return len(new) == len(old) and all(map(contains, new, old))
        case float():
            return bool(new == pytest.approx(old))
    return bool(new == old)


def test_what_is_contained() -> None:
    assert contains({"a": [1.0, {"b": None}], "c": 1}, {"a": [1.0 + 1e-9, {"b": None}]})
    for old in ({"b": None}, {"a": [1.0]}, {"a": [2.0, {}]}, {"a": [1.0, {"b": 0}]}):
        assert not contains({"a": [1.0, {"b": None}]}, old)


def test_a_trace_stands_beside_one_of_today(d3: D3, tmp_path: Path) -> None:
    today = tmp_path / "today.json"
    options = ("--alpha", "0.9", "--start", "2", "--max-tokens", "8", "--output-file", today)
    assert d3("profile", "Tell me a story about a fox.", *options).code == 0
    for one, other in ((TRACE, today), (today, TRACE)):
        result = d3("profile", "--from", one, "--against", other)
        assert result.code == 0, result.err


def test_the_lines_that_were_typed_come_back() -> None:
    path = state_dir() / "chat-history"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(WRITTEN / "chat-history", path)
    assert list(FileHistory(path).load_history_strings()) == [
        *("/quit", "What is 27 + 45?", "/alpha off", "Who lives in Larkmere?")
    ]
