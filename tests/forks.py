"""Command lines in children forked from one process that has imported everything already.

A child starts in milliseconds instead of seconds, so hundreds of runs take minutes. Each has its
own audit hook, limits, files and signals; what it did is measured from outside.

    with Forks() as forks:
        ended = forks.run("generate", "demo", "Hi", audit=["socket."])
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Ended:
    """How one command line ended.

    Attributes:
        code: the exit code; negative where a signal ended it that nothing handled.
        seen: audit events that were asked for, in order, with their arguments as text.
        most_resident: bytes, with what the child shares with the process it was forked from.
    """

    code: int
    out: str
    err: str
    seconds: float
    most_resident: int
    seen: tuple[str, ...]


class Forks:
    """Starts children that run d3, one after the other."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait()

    def run(self, *arguments: str | Path, **settings: Any) -> Ended:
        """One command line.

        Args:
            settings: `stdin` (text), `env` (beside the present one), `cwd`; `audit`, beginnings of
                the events to note; `limits`, ``{"AS": bytes}`` and the like; `signal` and `after`
                (seconds); `kill_after` (60 seconds, unless told).
        """
        assert self._server.stdin and self._server.stdout
        request = {"arguments": [str(a) for a in arguments]} | settings
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Ended(**answer | {"seen": tuple(answer["seen"])})


def serve() -> None:
    """Imports what commands need, then forks a child for each request."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import d3cli.cli.app
    import d3cli.engine
    import d3cli.load  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "in").write_text(request.get("stdin", ""))
            for empty in ("out", "err", "seen"):
                (folder / empty).touch()
            began = time.monotonic()
            child = os.fork()
            if child == 0:
                _become(request, folder)
            timers = [
                threading.Timer(request.get("kill_after", 60), _kill, (child, signal.SIGKILL))
            ]
            if "signal" in request:
                number = request["signal"]
                timers.append(threading.Timer(request["after"], _kill, (child, number)))
            for timer in timers:
                timer.start()
            _, status, usage = os.wait4(child, 0)
            seconds = time.monotonic() - began
            for timer in timers:
                timer.cancel()
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # nothing of its own is left behind
            seen = (folder / "seen").read_text(errors="replace").splitlines()
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "out": (folder / "out").read_bytes().decode(errors="replace"),
                "err": (folder / "err").read_bytes().decode(errors="replace"),
                "seconds": seconds,
                "most_resident": usage.ru_maxrss * 1024,
                "seen": seen,
            }
        print(json.dumps(answer), flush=True)


def _kill(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _become(request: dict[str, Any], folder: Path) -> None:
    """In the child: everything that a shell would set, then the command itself."""
    import resource

    code = 99
    try:
        os.setpgid(0, 0)
        for number, name, flags in (
            (0, "in", os.O_RDONLY),
            (1, "out", os.O_WRONLY),
            (2, "err", os.O_WRONLY),
        ):
            os.dup2(os.open(folder / name, flags), number)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        seen = os.open(folder / "seen", os.O_WRONLY | os.O_APPEND)
        wanted = tuple(request.get("audit", ()))

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            if event.startswith(wanted):
                os.write(seen, f"{event} {arguments!r:.300}\n".encode(errors="replace"))

        if wanted:
            sys.addaudithook(note)
        os.environ.update(request.get("env", {}))
        os.chdir(request.get("cwd", folder))
        for kind, most in request.get("limits", {}).items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
        from d3cli.__main__ import main

        sys.argv = ["d3", *request["arguments"]]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
