"""A few runs of each fault of `scripts/faults.py`, which makes hundreds."""

import random
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer

from d3cli.cli.app import app
from tests.forks import Forks

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import serve_clients
from fault_runs import COMMANDS, ImpossibleError, broken_files, problems, run_one
from faults import FAULTS
from killed_faults import texts

pytestmark = pytest.mark.slow

COUNTS = dict.fromkeys(FAULTS, 1) | {"signals": 2, "kills": 2}


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, n) for kind, count in COUNTS.items() for n in range(count)]
)
def test_a_fault_loses_nothing_and_shows_no_internals(kind: str, number: int, forks: Forks) -> None:
    fault, _ = FAULTS[kind]
    try:
        assert list(fault(forks, random.Random(f"{kind} {number}"))) == []
    except ImpossibleError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", [name for name in COMMANDS if not COMMANDS[name].may_fail])
def test_the_commands_work_without_a_fault(name: str, forks: Forks) -> None:
    """Else a fault could hide behind an error that each run of a command ends with."""
    writes = COMMANDS[name].arguments[:1] in (("generate",), ("chat",), ("profile",))
    short = ("--max-tokens", "8") if writes else ()
    assert list(run_one(forks, name, *short, may_fail=False)) == []


def test_a_chat_exports_and_saves_a_copy(forks: Forks, tmp_path: Path) -> None:
    """Else its faults would have nothing to disturb."""
    assert list(run_one(forks, "chat /export", home=tmp_path, may_fail=False)) == []
    assert "Hello." in (tmp_path / "talk.md").read_text()
    assert (tmp_path / "copy").read_text()


def test_some_layers_of_generate_on_disk_lie_there(forks: Forks) -> None:
    ended = forks.run(*COMMANDS["generate on disk"].arguments)
    assert "placed on disk: layers" in ended.err


def test_half_a_result_is_none() -> None:
    whole, half = b'{"index": 1, "text": "a"}\n', b'{"index": 2, "te'
    assert texts(whole + half) == {1: "a"}
    assert texts(half) == {}


def test_no_command_is_left_out() -> None:
    """A new command needs a line in `fault_runs.COMMANDS`, or faults of its own as `serve` has."""
    tried = {command.arguments[:count] for command in COMMANDS.values() for count in (1, 2)}

    def untried(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if words and words not in tried:
            yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from untried(inner, (*words, name))

    assert list(untried(typer.main.get_command(app), ())) == [("serve",)]


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server that answers one client with this; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (b'HTTP/1.1 200 OK\r\n\r\n{"choices": []}', ""),
        (b'HTTP/1.1 503 Busy\r\n\r\n{"error": {"message": "wait"}}', ""),
        (b'HTTP/1.1 500 Oh\r\n\r\n{"error": {"message": "internal"}}', "500"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"choi', "half a body"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"error": {}}', "200"),
    ],
)
def test_wrong_answers_of_a_server_are_found(answer: bytes, wrong: str) -> None:
    with answering(answer) as port:
        found = serve_clients.whole(port, random.Random(1))
    assert wrong in found
    assert bool(found) == bool(wrong)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n"])
def test_a_stream_that_is_cut_off_is_no_end(answer: bytes) -> None:
    with answering(answer) as port, pytest.raises(serve_clients.GoneError):
        serve_clients.streamed(port, random.Random(1))


def test_problems_are_found(forks: Forks, tmp_path: Path) -> None:
    """Checks the checks: a wrong exit code, internals shown, a broken file."""
    failed = forks.run("generate", "Hi.", "--max-tokens", "none")
    assert failed.code == 2
    assert list(problems(failed))
    assert not list(problems(failed, may_fail=True))
    assert list(problems(forks.call("check", str(tmp_path), "trace", "1", "too many")))
    assert not list(broken_files(tmp_path))
    (tmp_path / "x.json").write_text('{"half')
    assert list(broken_files(tmp_path))
    killed = forks.run("generate", "Hi.", signal=9, after=0.01)
    assert killed.code == -9
    assert list(problems(killed))


def test_a_signal_arrives_in_time(forks: Forks) -> None:
    ended = forks.run("generate", "Tell me a story.", "--max-tokens", "400", signal=15, after=0.3)
    assert ended.code == 143, ended.err
