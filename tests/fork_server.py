"""The process that `tests.forks` starts: it is warmed up, and forks a child per request."""

import fcntl
import importlib
import json
import locale
import math
import os
import resource
import select
import signal
import sys
import tempfile
import termios
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tests.warmed_up import set_constants, warm_up


def serve() -> None:
    """Warms up, then forks a child for each request."""
    warm_up(*sys.argv[1:])
    # A child that gets it before d3 handles signals ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            answer = _serve(json.loads(line), Path(folder))
        print(json.dumps(answer), flush=True)


def _serve(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs one child to its end; returns the fields of `Ended`."""
    (folder / "in").write_text(request.get("stdin", ""))
    (folder / "seen").touch()
    # Pipes, since a limit on the size of files must not limit what a command says.
    (out, told_out), (err, told_err) = os.pipe(), os.pipe()
    over = threading.Event()
    if terminal := request.get("terminal"):
        os.close(out)
        os.close(told_out)
        out, told_out = os.openpty()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(out)  # else the terminal would stay while its own child holds it
        os.close(err)
        _become(request, folder, told_out, told_err)
    os.close(told_out)
    os.close(told_err)
    stop = partial(_kill, child, request.get("signal", signal.SIGKILL))
    gone = began + request["after"] if request.get("hang_up") else math.inf
    said = [
        _Reader(out, stop, request.get("after_out", math.inf), request.get("close_out"), gone),
        _Reader(err, stop, request.get("after_err", math.inf)),
    ]
    if terminal:
        lines = request.get("stdin", "").splitlines()
        threading.Thread(target=_type, args=(said[0], lines, over), daemon=True).start()
    timers = [threading.Timer(request.get("kill_after", 300), _kill, (child, signal.SIGKILL))]
    if "signal" in request and "after" in request:
        timers.append(threading.Timer(request["after"], stop))
    for timer in timers:
        timer.start()
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - began
    for timer in timers:
        timer.cancel()
    over.set()
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # no process of its own is left
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": said[0].text(),
        "err": said[0 if terminal else 1].text(),
        "seconds": seconds,
        "most_resident": usage.ru_maxrss * 1024,
        "seen": (folder / "seen").read_text(errors="replace").splitlines(),
    }


class _Reader(threading.Thread):
    """Reads a pipe or a terminal to its end.

    Args:
        stop: is called once `stop_after` bytes are there.
        close_after: bytes after which nothing more is read.
        gone: when to hang up, by `time.monotonic`.
    """

    def __init__(
        self,
        descriptor: int,
        stop: Callable[[], None],
        stop_after: float,
        close_after: float | None = None,
        gone: float = math.inf,
    ) -> None:
        super().__init__(daemon=True)
        self._descriptor, self._gone, self._data = descriptor, gone, b""
        self._stop_child, self._stop_after = stop, stop_after
        self._close_after = math.inf if close_after is None else close_after
        self._open = threading.Lock()  # held by a thread that uses the descriptor
        self.start()

    def run(self) -> None:
        with suppress(OSError):  # how a terminal says that nobody is left
            while (now := time.monotonic()) < self._gone and len(self._data) < self._close_after:
                if not select.select([self._descriptor], [], [], min(0.1, self._gone - now))[0]:
                    continue
                if not (piece := os.read(self._descriptor, 1 << 16)):
                    break
                self._data += piece
                if len(self._data) >= self._stop_after:
                    self._stop_after = math.inf
                    self._stop_child()
        with self._open:
            os.close(self._descriptor)
            self._descriptor = -1

    def type(self, keys: bytes) -> None:
        with self._open, suppress(OSError):
            os.write(self._descriptor, keys)

    def has(self, shown: bytes) -> bool:
        return shown in self._data

    def text(self) -> str:
        self.join()
        return self._data.decode(errors="replace")


def _type(terminal: _Reader, lines: list[str], over: threading.Event) -> None:
    """Types as a person does, after the first prompt. All at once would be taken for a paste."""
    while not terminal.has(b">>>"):
        if over.wait(0.05):
            return
    for line in lines:
        for pause, keys in ((0.6, line.encode()), (0.1, b"\r")):
            if over.wait(pause):
                return
            terminal.type(keys)
    # On a busy machine several lines may have arrived as one. Clears that line, and leaves.
    while not over.wait(8):
        terminal.type(b"\x03")
        over.wait(0.5)
        terminal.type(b"\x04")


def _kill(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _become(request: dict[str, Any], folder: Path, out: int, err: int) -> NoReturn:
    """In the child: sets everything that a shell would set, then runs the command."""
    code = 99
    try:
        _set_streams(request, folder, out, err)
        _set_limits(request, folder)
        set_constants(request.get("constants", {}))
        if "call" in request:
            module, _, name = request["call"].rpartition(".")
            function = getattr(importlib.import_module(module or "tests.writers"), name)
            function(*request["arguments"])
        else:
            from d3cli.__main__ import main

            sys.argv = ["d3", *request["arguments"]]
            main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)


def _set_streams(request: dict[str, Any], folder: Path, out: int, err: int) -> None:
    if request.get("terminal"):
        os.setsid()
        fcntl.ioctl(out, termios.TIOCSCTTY, 0)
        sources = (out, out, out)
    else:
        os.setpgid(0, 0)
        sources = (
            os.open(folder / "in", os.O_RDONLY),
            os.open(request["out"], os.O_WRONLY) if "out" in request else out,
            os.open(request["err"], os.O_WRONLY) if "err" in request else err,
        )
    for number, source in enumerate(sources):
        os.dup2(source, number)
    encoding = request.get("encoding")
    if encoding:
        locale.setlocale(locale.LC_ALL, "C")
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding=encoding or "utf-8", errors=errors, closefd=False)  # noqa: SIM115
        for number, mode, errors in (
            (0, "r", "surrogateescape"),
            (1, "w", "strict"),
            (2, "w", "backslashreplace"),
        )
    )


def _set_limits(request: dict[str, Any], folder: Path) -> None:
    """Sets the environment, the audit hook, the directory, the control group and the limits."""
    seen = os.open(folder / "seen", os.O_WRONLY | os.O_APPEND)
    wanted = tuple(request.get("audit", ()))

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(wanted):
            os.write(seen, f"{event} {arguments!r:.300}\n".encode(errors="replace"))

    if wanted:
        sys.addaudithook(note)
    os.environ.update(request.get("env", {}))
    os.chdir(request.get("cwd", folder))
    if "group" in request:
        Path(request["group"], "cgroup.procs").write_text(str(os.getpid()))
    for kind, most in request.get("limits", {}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))


if __name__ == "__main__":
    serve()
