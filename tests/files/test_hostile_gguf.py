"""Hostile GGUF files, end to end: each gets one clear error, runs no code and stays in bounds."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Ended, Forks
from tests.gguf_bytes import parse
from tests.gguf_models import write_gguf
from tests.hostile import HARMLESS_GGUF, REFUSED_GGUF
from tests.hostile.checks import EVENTS, check_inside, check_one_clear_line, make_outside
from tests.hostile.gguf_registry import Change
from tests.hostile.one_process import Request, run_in_one

WORDS = ("--prompt", "Hi.", "--max-tokens", "2", "--device", "cpu")
# These take long to build or to refuse.
LONG = {
    "a_million_tokens",
    "five_million_tokens_of_nothing",
    "long_tokens_of_65_megabytes",
    "long_pieces_without_merges",
    "a_header_beyond_the_limit",
    "two_hundred_thousand_tensors",
}
# A template is rendered in a process of its own, which takes a second to start.
QUICK_TEMPLATES = {"a_template_that_escapes", "a_template_that_runs_a_command"}
QUICK_HARMLESS = {"ends_beyond_the_vocabulary"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("good") / "good.gguf", kind="Q8_0").path.read_bytes()


def run_all(
    forks: Forks, folder: Path, good: bytes, changes: Mapping[str, Change]
) -> dict[str, Ended]:
    """How replies from changed files ended. Fails if one left its directory."""
    requests, outsides = {}, {}
    for number, (name, change) in enumerate(changes.items()):
        place = folder / str(number)
        inside = place / "inside"
        inside.mkdir(parents=True)
        outsides[name] = make_outside(place)
        path = change(inside, good, outsides[name])
        arguments = ("generate", str(path), *WORDS)
        requests[name] = Request(arguments, str(inside), str(place / "home"))
    ended = run_in_one(forks, folder, requests, EVENTS)
    for name, each in ended.items():
        check_inside(each, outsides[name])
    return ended


def as_it_is(folder: Path, good: bytes, _: Path) -> Path:
    (folder / "model.gguf").write_bytes(parse(good).encode())
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def control(forks: Forks, tmp_path_factory: pytest.TempPathFactory, good: bytes) -> Ended:
    """The good file, whose memory the others are compared with."""
    return run_all(forks, tmp_path_factory.mktemp("control"), good, {"good": as_it_is})["good"]


def test_the_good_file_answers(control: Ended) -> None:
    assert control.code == 0, control.err
    assert control.out


def is_slow(name: str) -> bool:
    return name in LONG or (name.startswith("a_template_") and name not in QUICK_TEMPLATES)


def groups() -> Iterator[Any]:
    """The quick ones by theme, since one process runs a whole theme in seconds; the others alone.

    For each, the changes by name.
    """
    for theme, changes in REFUSED_GGUF.items():
        quick = {name: change for name, change in changes.items() if not is_slow(name)}
        yield pytest.param(quick, id=theme)
        for name in sorted(changes.keys() - quick.keys()):
            yield pytest.param({name: changes[name]}, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize("changes", list(groups()))
def test_each_hostile_file_is_one_clear_error(
    changes: dict[str, Change],
    forks: Forks,
    tmp_path: Path,
    good: bytes,
    control: Ended,
    record_property: Callable[[str, object], None],
) -> None:
    failed = {}
    for name, ended in run_all(forks, tmp_path, good, changes).items():
        record_property(name, f"{ended.seconds:.2f} {ended.most_resident >> 20}")
        try:
            check_one_clear_line(ended, control)
        except AssertionError as problem:
            failed[name] = str(problem)
    assert not failed


def harmless() -> Iterator[Any]:
    for name in HARMLESS_GGUF:
        marks = [] if name in QUICK_HARMLESS else [pytest.mark.slow]
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(harmless()))
def test_a_file_that_only_looks_hostile_answers(
    name: str, forks: Forks, tmp_path: Path, good: bytes, control: Ended
) -> None:
    ended = run_all(forks, tmp_path, good, {name: HARMLESS_GGUF[name]})[name]
    assert ended.code == 0, ended.err
    assert ended.most_resident < 2 * control.most_resident


def test_a_full_disk_is_not_blamed_on_the_file(forks: Forks, tmp_path: Path, good: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(good)
    arguments = ("generate", tmp_path / "x.gguf", "--prompt", "Hi.")
    ended = forks.run(*arguments, env={"D3_HOME": str(tmp_path)}, limits={"FSIZE": 0})
    assert ended.code == 1
    assert "needs a small temporary file, which cannot be written: File too large" in ended.err
    assert "download" not in ended.err
