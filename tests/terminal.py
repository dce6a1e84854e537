"""A terminal for tests: runs a command in a pseudo-terminal and keeps what its screen shows."""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

WHERE = "\x1b[6n"  # where is the cursor? a terminal answers


class Terminal:
    """One command in a terminal of its own.

    Args:
        arguments: what follows the program.
        home: where d3 keeps its files.
    """

    def __init__(
        self,
        *arguments: str | Path,
        home: Path,
        columns: int = 80,
        rows: int = 24,
        program: str = sys.executable,
        **environment: str,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.5)
        self._stream = pyte.Stream(self.screen)
        self.raw = ""  # every byte that was written, as text
        # Rich believes COLUMNS and LINES, which pytest-xdist sets, before the terminal itself.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("D3_") and name not in ("COLUMNS", "LINES")
        }
        self.child = pexpect.spawn(
            program,
            [str(argument) for argument in arguments],
            dimensions=(rows, columns),
            encoding="utf-8",
            codec_errors="replace",
            env=kept
            | {"D3_HOME": str(home), "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
            | environment,
        )
        self.child.delaybeforesend = None

    def read(self, seconds: float = 0.05) -> None:
        """Takes what the command has written since."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                new = self.child.read_nonblocking(65536, timeout=0.02)
            except pexpect.TIMEOUT:
                continue
            except (pexpect.EOF, OSError):
                return
            self.raw += new
            *parts, last = new.split(WHERE)
            for part in parts:
                self._stream.feed(part)
                row, column = self.screen.cursor.y + 1, self.screen.cursor.x + 1
                self.child.send(f"\x1b[{row};{column}R")
            self._stream.feed(last)

    @property
    def text(self) -> str:
        """The scrollback and the screen, without blanks at the ends of lines."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns))
            for line in self.screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip()

    @property
    def plain(self) -> str:
        """The same with lines joined as one reads them: for texts that may be wrapped."""
        return re.sub(r"\s+", " ", self.text)

    def send(self, text: str) -> None:
        """Types."""
        self.child.send(text)

    def line(self, text: str) -> None:
        """Types a line and Enter."""
        self.child.send(text + "\r")

    def paste(self, text: str) -> None:
        """As terminals do that mark a paste; it may be long."""
        hand = threading.Thread(target=self.child.send, args=(f"\x1b[200~{text}\x1b[201~",))
        hand.start()
        while hand.is_alive():  # else both sides might wait for the other to read
            self.read()

    def wait(self, what: str | Callable[[], bool], seconds: float = 120) -> None:
        """Until this text has appeared since the last wait, or this is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.read()
            if what() if callable(what) else what in self.plain:
                return
        raise AssertionError(f"waited for {what!r} in vain; the screen:\n{self.text}")

    def resize(self, columns: int, rows: int) -> None:
        """As a user who pulls at the window's corner."""
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def end(self, seconds: float = 120) -> int:
        """Waits for the command to end; gives its exit code, 128 + n for a signal."""
        deadline = time.monotonic() + seconds
        while self.child.isalive() and time.monotonic() < deadline:
            self.read()
        self.read()
        assert not self.child.isalive(), f"still running; the screen:\n{self.text}"
        code = self.child.exitstatus
        return 128 + self.child.signalstatus if code is None else code

    def close(self) -> None:
        """Ends it, whatever it does."""
        with contextlib.suppress(pexpect.ExceptionPexpect, OSError):
            self.child.close(force=True)
