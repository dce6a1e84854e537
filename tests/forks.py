"""Runs command lines in children forked from one process that has imported everything.

A child starts in milliseconds instead of seconds, so hundreds of runs take minutes. Each child has
its own audit hook, limits, files and signals. What it did is measured from outside.

    with Forks() as forks:
        ended = forks.run("generate", "demo", "Hi", audit=["socket."])
"""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Ended:
    """How one command line ended.

    Attributes:
        code: the exit code; negative if a signal killed it.
        most_resident: bytes, with those shared with the process it was forked from.
        seen: the audit events asked for, in order, with their arguments as text.
    """

    code: int
    out: str
    err: str
    seconds: float = 0
    most_resident: int = 0
    seen: tuple[str, ...] = ()


class Forks:
    """Starts children that run d3, one after the other.

    Args:
        imports: modules that the children find imported, beside those of the commands.
    """

    def __init__(self, *imports: str) -> None:
        self.codes: Counter[int] = Counter()  # of all children that have ended
        self._imports = imports

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", *self._imports],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "critical"},
        )
        return self

    @property
    def pid(self) -> int:
        """Of the process whose children run the command lines."""
        return self._server.pid

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait()

    def run(self, *arguments: str | Path, **settings: Any) -> Ended:
        """Runs one command line.

        Args:
            settings: What the child gets:

                - `stdin`: text; `out` and `err`: files to write to in place of pipes;
                - `terminal`: types `stdin` at a terminal, and `err` is all that it shows;
                - `env`, beside the present one; `cwd`;
                - `encoding` of the standard streams, with the C locale;
                - `limits`, ``{"AS": bytes}`` and the like; `group`, a control group's directory;
                - `audit`: the beginnings of the audit events to note;
                - `constants`: module attributes with other values, as in `tests.warm`.

                And what happens to it:

                - `signal`, with `after` (seconds), or `after_out` or `after_err` (bytes written);
                - `close_out`: after so many bytes its stdout is closed;
                - `hang_up`, with `after`: the terminal goes away;
                - `kill_after`: 300 seconds by default.
        """
        return self._ask({"arguments": [str(a) for a in arguments]} | settings)

    def call(self, name: str, *arguments: str, **settings: Any) -> Ended:
        """Calls ``module.function``, or a function of `tests.writers`; `settings` as in `run`."""
        return self._ask({"call": name, "arguments": arguments} | settings)

    def _ask(self, request: dict[str, Any]) -> Ended:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        self.codes[answer["code"]] += 1
        return Ended(**answer | {"seen": tuple(answer["seen"])})
