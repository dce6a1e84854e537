"""Hostile files besides models: each gets one clear line, or is passed over with one note."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.history import InMemoryHistory

from d3cli.cli.chat.line_editor import _open_history
from d3cli.cli.output import Output
from tests.forks import Ended, Forks
from tests.hostile import DOORS, Door
from tests.hostile.checks import EVENTS, check_inside, check_one_clear_line
from tests.hostile.one_process import run_in_one
from tests.hostile.stored_cases import prepare
from tests.hostile.stored_registry import NO_FILES, PIPE, Change, as_it_is

# Each writes a reply.
SLOW_DOORS = {"calibration of a reply"}
# These are built, read or drawn for seconds.
LONG = {
    "many_tokens",
    "many_replies_over_many_layers",
    "a_prompt_of_ten_megabytes",
    "four_million_lists_that_nobody_reads",
    "two_hundred_thousand_entries",
    "a_million_units",
    "six_million_rows",
    "newlines",
    "spaces",
    "a_book_without_an_end",
}


def run_all(
    forks: Forks, folder: Path, door: Door, changes: Mapping[str, Change]
) -> dict[str, Ended]:
    """How the commands that read changed files ended. Fails if one touched something outside."""
    cases = {}
    for number, (name, change) in enumerate(changes.items()):
        (folder / str(number)).mkdir()
        cases[name] = prepare(door, change, folder / str(number))
    ended = run_in_one(forks, folder, {name: case for name, (case, _) in cases.items()}, EVENTS)
    for name, each in ended.items():
        check_inside(each, cases[name][1])
    return ended


@pytest.fixture(scope="module")
def control(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A command that reads a good file, with whose memory the others are compared."""
    trace = DOORS[0]
    ended = run_all(forks, tmp_path_factory.mktemp("control"), trace, {"good": as_it_is})["good"]
    assert ended.code == 0 and ended.out, ended.err
    return ended


def groups(harmless: bool) -> Iterator[Any]:
    """The quick ones of each door, since one process runs them in seconds; the others alone."""
    for door in DOORS:
        changes = door.harmless if harmless else door.refused
        slow = LONG | (changes.keys() if door.name in SLOW_DOORS else set())
        quick = {name: change for name, change in changes.items() if name not in slow}
        if quick:
            yield pytest.param(door, quick, id=door.name)
        for name in sorted(changes.keys() & slow):
            marks = pytest.mark.slow
            yield pytest.param(door, {name: changes[name]}, id=f"{door.name}: {name}", marks=marks)


@pytest.mark.parametrize(("door", "changes"), list(groups(harmless=False)))
def test_each_hostile_file_is_one_clear_line(
    door: Door,
    changes: dict[str, Change],
    forks: Forks,
    tmp_path: Path,
    control: Ended,
    record_property: Callable[[str, object], None],
) -> None:
    failed = {}
    for name, ended in run_all(forks, tmp_path, door, changes).items():
        record_property(name, f"{ended.seconds:.2f} {ended.most_resident >> 20}")
        try:
            if door.ignored is None:
                check_one_clear_line(ended, control)
            else:
                check_one_note(ended, door.ignored, control)
        except AssertionError as problem:
            failed[name] = str(problem)
    assert not failed


def check_one_note(ended: Ended, note: str, control: Ended) -> None:
    """Fails unless a command did without the file, and said so once."""
    assert ended.code == 0, ended.err
    assert f"{ended.out}\n{ended.err}".count(note) >= 1, (ended.out, ended.err)
    assert "error: " not in ended.err and "internal error" not in ended.err
    assert ended.most_resident < 2 * control.most_resident
    for line in f"{ended.out}\n{ended.err}".splitlines():
        assert line.replace("\t", " ").isprintable(), line


@pytest.mark.parametrize(("door", "changes"), list(groups(harmless=True)))
def test_a_file_that_only_looks_hostile_is_read(
    door: Door, changes: dict[str, Change], forks: Forks, tmp_path: Path, control: Ended
) -> None:
    failed = {}
    for name, ended in run_all(forks, tmp_path, door, changes).items():
        try:
            assert ended.code == 0 and "error: " not in ended.err, ended.err
            assert ended.most_resident < 2 * control.most_resident
            for line in ended.out.splitlines():
                assert line.replace("\t", " ").isprintable(), line[:300]
        except AssertionError as problem:
            failed[name] = str(problem)
    assert not failed


@pytest.mark.parametrize("change", ["a_terabyte", "a_link_to_a_device", "a_pipe", "a_directory"])
def test_an_input_history_that_cannot_be_read_to_its_end_is_left_alone(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    {**NO_FILES, **PIPE}[change](tmp_path / "history", b"", tmp_path)
    history = _open_history(Output(), tmp_path / "history")
    assert isinstance(history, InMemoryHistory)
    assert capsys.readouterr().err.startswith("the input history is not saved: ")
