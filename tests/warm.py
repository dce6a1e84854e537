"""Starts d3 on pseudo-terminals quickly: forks one process that has imported everything.

A process of its own needs seconds of imports; a fork needs milliseconds. The fork has its own
session, controlling terminal, environment and signals. It can also be changed in three ways that
make a test independent of the machine's speed:

- `constants`: module attributes with other values: ``{"d3cli.cli.chat.keyboard:AT_ONCE": 0.0}``.
- `hold_at`: the first reply pauses before this decode step, until `Forked.release`.
- `hold_loading`: so does the loading of the model, before anything of it is read.

    with Warm() as warm:
        child = warm.start(["chat", "--threads", "1"], os.environ, columns=80, rows=24)
"""

import fcntl
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pexpect.fdpexpect import fdspawn

from tests.warmed_up import set_constants, warm_up

ROOT = Path(__file__).parent.parent
# Draw a reply at every token, so that what a held reply shows does not depend on the clock.
DRAW_ALWAYS = {
    "d3cli.cli.chat.markdown:INTERVAL": 0.0,
    "d3cli.cli.chat.markdown:SHARE": 1e9,
}
HANGS = 120  # seconds after which something has gone wrong


class Forked(fdspawn):
    """A forked d3 on its terminal, with what the tests use of `pexpect.spawn`.

    Attributes:
        exitstatus, signalstatus: how it ended; both are None while it runs.
    """

    def __init__(self, master: int, folder: Path) -> None:
        super().__init__(master, encoding="utf-8", codec_errors="replace")
        self.delaybeforesend = None
        self._folder = folder
        _await(folder / "pid")
        self.pid = int((folder / "pid").read_text())

    def isalive(self) -> bool:
        ended = self._folder / "ended"
        if not ended.exists():
            return True
        code = os.waitstatus_to_exitcode(int(ended.read_text()))
        self.exitstatus, self.signalstatus = (None, -code) if code < 0 else (code, None)
        return False

    def is_held(self) -> bool:
        """Whether the reply or the loading has come to where it is held."""
        return (self._folder / "held").exists()

    def release(self) -> None:
        """Lets what is held go on."""
        (self._folder / "released").touch()

    def kill(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def setwinsize(self, rows: int, columns: int) -> None:
        _set_size(self.child_fd, rows, columns)

    def close(self, force: bool = True) -> None:
        if force and self.isalive():
            self.kill(signal.SIGKILL)
        super().close()


class Warm:
    """The process that forks."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "critical"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(HANGS)
        self._folder.cleanup()

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        columns: int,
        rows: int,
        constants: Mapping[str, Any] | None = None,
        hold_at: int | None = None,
        hold_loading: bool = False,
        largest_file: int | None = None,
    ) -> Forked:
        """Starts ``d3 arguments...``; `largest_file` limits what it can write, in bytes."""
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        folder.mkdir()
        master, slave = os.openpty()
        _set_size(master, rows, columns)
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "terminal": os.ttyname(slave),
            "folder": str(folder),
            "constants": (DRAW_ALWAYS if hold_at else {}) | dict(constants or {}),
            "hold_at": hold_at,
            "hold_loading": hold_loading,
            "largest_file": largest_file,
        }
        assert self._server.stdin
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        child = Forked(master, folder)
        os.close(slave)  # the child has it now
        return child


def _set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _await(path: Path) -> None:
    deadline = time.monotonic() + HANGS
    while not path.exists():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited for {path} in vain")
        time.sleep(0.002)


def serve() -> None:
    """Warms up, then forks for each request."""
    warm_up()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    for line in sys.stdin:
        request = json.loads(line)
        if os.fork() == 0:
            _watch(request)


def _watch(request: dict[str, Any]) -> None:
    """Forks d3, notes its process id, and in the end how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = Path(request["folder"])
    child = os.fork()
    if child == 0:
        _become(request, folder)
    _, status = os.waitpid(child, 0)
    _write_at_once(folder / "ended", str(status))
    os._exit(0)


def _become(request: dict[str, Any], folder: Path) -> None:
    """Runs d3 in this process, on the terminal."""
    code = 99
    try:
        os.setsid()
        terminal = os.open(request["terminal"], os.O_RDWR)
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(terminal, number)
        os.closerange(3, 256)  # a terminal that goes must have nobody left
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
            for number, mode, errors in (
                (0, "r", "surrogateescape"),
                (1, "w", "strict"),
                (2, "w", "backslashreplace"),
            )
        )
        os.environ.clear()
        os.environ.update(request["environment"])
        set_constants(request["constants"])
        if request["hold_at"]:
            hold(request["hold_at"], folder)
        if request["hold_loading"]:
            hold_loading(folder)
        _write_at_once(folder / "pid", str(os.getpid()))
        if limit := request["largest_file"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        from d3cli.__main__ import main

        sys.argv = ["d3", *request["arguments"]]
        main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def hold(at: int, folder: Path) -> None:
    """Makes this process wait, once, before its decode step of this number.

    It then writes ``held`` into the folder, and waits for ``released``.
    """
    from d3cli.decode import loop

    decode_step, steps = loop.decode_step, iter(range(1, at + 1))

    def held(*words: Any, **named: Any) -> Any:
        if next(steps, None) == at:
            _wait_in(folder)
        return decode_step(*words, **named)

    loop.decode_step = held


def hold_loading(folder: Path) -> None:
    """Makes this process wait, as `hold` does, before it loads a model."""
    from d3cli.model import load

    load_model = load.load_model

    def held(*words: Any, **named: Any) -> Any:
        _wait_in(folder)
        return load_model(*words, **named)

    load.load_model = held


def _wait_in(folder: Path) -> None:
    (folder / "held").touch()
    while not (folder / "released").exists():
        time.sleep(0.005)


def _write_at_once(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


if __name__ == "__main__":
    serve()
