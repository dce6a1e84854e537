"""Standard input as scripts leave it: read to its end, named in a note, or left alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from d3cli.base.errors import PromptError, UsageError
from d3cli.cli import stdin
from d3cli.cli.output import Output
from d3cli.cli.prompt_options import PromptOptions
from d3cli.cli.prompts import read_prompt, read_prompts
from tests.conftest import BUILTIN_PATH, D3, check
from tests.processes import d3_process

WAITING = "waiting for text on stdin"
Feed = Callable[[int], None]


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    """Makes a descriptor this process's stdin."""
    streams = []

    def call(descriptor: int) -> None:
        streams.append(os.fdopen(descriptor, "r", encoding="utf-8"))
        monkeypatch.setattr("sys.stdin", streams[-1])

    yield call
    for stream in streams:
        with suppress(OSError):
            stream.close()


def pipe(data: bytes) -> int:
    """The reading end of a pipe with some data and an end."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def prompt(text: str | None, typed: tuple[str, ...] = (), **options: Any) -> str:
    given = PromptOptions(model="demo", text=text, **options)
    return read_prompt(Output(), given, typed)[1]


class TestWhatStdinIs:
    def test_a_pipe_stands_before_the_prompt(
        self, feed: Feed, capsys: pytest.CaptureFixture[str]
    ) -> None:
        feed(pipe(b"b?\nc?\n"))
        assert prompt("a?") == "b?\nc?\n\na?"
        assert "6 bytes of stdin stand before the prompt" in capsys.readouterr().err

    def test_the_rest_of_a_file_stands_before_the_prompt(
        self, feed: Feed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "q.txt").write_text("a?\nb?\n")
        rest = os.open(tmp_path / "q.txt", os.O_RDONLY)
        os.read(rest, 3)  # as a shell's `read` does
        feed(rest)
        assert prompt("a?") == "b?\n\na?"
        assert "3 bytes of stdin stand before the prompt" in capsys.readouterr().err

    def test_one_byte_stands_alone(self, feed: Feed, capsys: pytest.CaptureFixture[str]) -> None:
        feed(pipe(b"x"))
        assert prompt("a?") == "x\n\na?"
        assert "1 byte of stdin stands before the prompt" in capsys.readouterr().err

    @pytest.mark.parametrize("kind", ["an empty pipe", "/dev/null", "a terminal", "a socket"])
    def test_these_hold_no_prompt(
        self, kind: str, feed: Feed, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if kind == "an empty pipe":
            feed(pipe(b""))
        elif kind == "/dev/null":
            feed(os.open(os.devnull, os.O_RDONLY))
        elif kind == "a terminal":
            feed(os.openpty()[1])
        else:  # as Node gives its children, and never ends
            ours, theirs = socket.socketpair()
            feed(theirs.detach())
            self._kept = ours
        assert prompt("a?") == "a?"
        assert capsys.readouterr().err == ""

    def test_a_file_for_writing_only_holds_no_prompt(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with (tmp_path / "log").open("w") as log:
            monkeypatch.setattr("sys.stdin", log)
            assert prompt("a?") == "a?"

    def test_a_closed_stdin_holds_no_prompt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", None)
        assert prompt("a?") == "a?"
        with pytest.raises(PromptError, match="the prompt is empty") as error:
            prompt("-")
        assert "stdin has no text" in error.value.hint

    @pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
    @pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
    def test_a_prompt_that_is_stdin_is_read_once(
        self, name: str, kind: str, feed: Feed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if kind == "pipe":
            feed(pipe(b"once\n"))
        elif kind == "socket":
            ours, theirs = socket.socketpair()
            ours.sendall(b"once\n")
            ours.close()
            feed(theirs.detach())
        else:
            (tmp_path / "p.txt").write_text("once\n")
            feed(os.open(tmp_path / "p.txt", os.O_RDONLY))
        assert prompt(None, prompt_file=Path(name)) == "once"
        assert capsys.readouterr().err == ""

    def test_a_pipe_that_does_not_block_is_read_to_its_end(self, feed: Feed) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        feed(reading)

        def write_slowly() -> None:
            for part in (b"two ", b"parts"):
                time.sleep(0.05)
                os.write(writing, part)
            os.close(writing)

        threading.Thread(target=write_slowly).start()
        assert prompt("a?") == "two parts\n\na?"

    def test_process_substitution_is_a_prompt(self, feed: Feed) -> None:
        feed(os.open(os.devnull, os.O_RDONLY))
        reading = pipe(b"from a command\n")
        assert prompt(None, prompt_file=Path(f"/dev/fd/{reading}")) == "from a command"
        os.close(reading)


class TestNoStdin:
    @pytest.mark.parametrize("kind", ["pipe", "file", "endless pipe"])
    def test_stdin_stays_unread(
        self, kind: str, feed: Feed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rest = b"b?\nc?\n"
        if kind == "file":
            (tmp_path / "q.txt").write_bytes(rest)
            reading = os.open(tmp_path / "q.txt", os.O_RDONLY)
        else:
            reading, writing = os.pipe()
            os.write(writing, rest)
            if kind == "pipe":
                os.close(writing)
        feed(reading)
        assert prompt("a?", no_stdin=True) == "a?"
        assert capsys.readouterr().err == ""
        assert os.read(reading, 99) == rest

    def test_typed_it_excludes_stdin_as_the_prompt(self) -> None:
        typed = ("no_stdin",)
        rows = PromptOptions(model="demo", no_stdin=True)
        for ask in (
            lambda: prompt("-", typed, no_stdin=True),
            lambda: prompt(None, typed, no_stdin=True, prompt_file=Path("/dev/stdin")),
            lambda: read_prompts(Output(), rows, Path("-"), typed),
        ):
            with pytest.raises(UsageError, match="--no-stdin excludes a prompt on stdin"):
                ask()

    def test_as_a_setting_it_gives_way_to_a_dash(self, feed: Feed) -> None:
        feed(pipe(b"asked for"))
        assert prompt("-", no_stdin=True) == "asked for"

    @pytest.mark.parametrize("command", ["generate", "profile"])
    def test_a_variable_sets_it(
        self, command: str, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = (command, "demo", "Hi.", "--json", "--max-tokens", "1")
        monkeypatch.setenv("D3_NO_STDIN", "1")
        result = d3(*words, stdin=b"word " * 50)
        assert result.code == 0
        assert "bytes of stdin" not in result.err
        if command == "generate":
            assert json.loads(result.out)["stats"]["prompt_tokens"] < 50

    def test_a_loop_over_a_file_reaches_each_line(self, tmp_path: Path) -> None:
        (tmp_path / "q.txt").write_text("One?\nTwo?\nThree?\n")
        # An empty prompt is refused before torch is imported.
        ask = f'"{sys.executable}" -m d3cli generate "" --no-stdin'
        ended = subprocess.run(
            ["sh", "-c", f"while read q; do {ask}; done < q.txt"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.stderr.count("the prompt is empty") == 3


class TestWaiting:
    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stdin, "PATIENCE", 0.05)

    @pytest.mark.parametrize("begun", [b"", b"some "])
    @pytest.mark.parametrize("text", ["a?", "-"])
    def test_a_pipe_that_stays_open_is_named(
        self, begun: bytes, text: str, feed: Feed, capsys: pytest.CaptureFixture[str]
    ) -> None:
        reading, writing = os.pipe()
        os.write(writing, begun)
        feed(reading)

        def end() -> None:
            os.write(writing, b"text")
            os.close(writing)

        threading.Timer(0.3, end).start()
        assert prompt(text).startswith((begun + b"text").decode())
        err = capsys.readouterr().err
        assert err.count(WAITING) == 1
        assert ("--no-stdin" in err) == (text == "a?")

    @pytest.mark.parametrize("name", ["p.txt", "rows.jsonl"])
    def test_a_named_pipe_without_a_writer_is_named(
        self, name: str, feed: Feed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        feed(os.open(os.devnull, os.O_RDONLY))
        fifo = tmp_path / name
        os.mkfifo(fifo)
        threading.Timer(0.3, lambda: fifo.write_text('{"prompt": "x"}\n')).start()
        if name == "p.txt":
            prompt(None, prompt_file=fifo)
        else:
            read_prompts(Output(), PromptOptions(model="demo"), fifo)
        assert "waiting for text from " in capsys.readouterr().err

    def test_a_chat_template_that_is_a_pipe_without_a_writer_is_named(
        self, d3: D3, tmp_path: Path
    ) -> None:
        fifo = tmp_path / "chat.jinja"
        os.mkfifo(fifo)

        def write_late() -> None:
            with fifo.open("w") as writing:  # once d3 has opened it
                time.sleep(0.5)
                writing.write("\n")

        threading.Thread(target=write_late).start()
        result = d3("generate", "demo", "x", "--chat-template", str(fifo))
        check(result, 2, "chat.jinja is empty")
        assert f"waiting for text from {fifo}" in result.err

    def test_text_that_is_there_is_not_awaited(
        self, feed: Feed, capsys: pytest.CaptureFixture[str]
    ) -> None:
        feed(pipe(b"text"))
        prompt("-")
        time.sleep(0.1)
        assert capsys.readouterr().err == ""

    def test_a_terminal_is_told_at_once_how_to_end(
        self, feed: Feed, capsys: pytest.CaptureFixture[str]
    ) -> None:
        keys, terminal = os.openpty()
        feed(terminal)
        os.write(keys, b"typed\n\x04")
        assert prompt("-") == "typed"
        assert f"{WAITING}; Ctrl-D ends it" in capsys.readouterr().err
        os.close(keys)

    def test_a_recorded_run_is_awaited_too(
        self, d3: D3, feed: Feed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reading, writing = os.pipe()
        feed(reading)
        waiting = stdin.waiting

        def then_end(*arguments: Any) -> Any:  # not before: d3 imports for a while
            threading.Timer(0.3, os.close, [writing]).start()
            return waiting(*arguments)

        monkeypatch.setattr(stdin, "waiting", then_end)
        result = d3("profile", "--from", "-")
        assert result.code == 2 or result.code == 1
        assert WAITING in result.err

    def test_a_signal_ends_the_wait(self) -> None:
        codes = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}
        processes = [
            (d3_process("generate", "Hi.", stdin=subprocess.PIPE, bufsize=0), number)
            for number in codes
        ]
        for process, number in processes:
            assert process.stderr is not None
            assert WAITING.encode() in process.stderr.readline()
            process.send_signal(number)
            assert process.wait(60) == codes[number]
            assert process.stderr.read() == b""
            for stream in (process.stdin, process.stdout, process.stderr):
                assert stream is not None
                stream.close()


def test_an_empty_prompt_names_where_it_was_looked_for(d3: D3, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n")
    for words, hint in (
        (["demo", "-"], "stdin has no text"),
        (["demo", "--prompt-file", str(tmp_path / "p.txt")], "p.txt has no text"),
        ([str(BUILTIN_PATH)], "was taken for the model"),
        (["demo", ""], "give it in quotes"),
    ):
        result = d3("generate", *words, stdin=b"")
        check(result, 2, "the prompt is empty")
        assert hint in result.err
