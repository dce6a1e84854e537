"""A terminal for tests: runs a command in a pseudo-terminal and keeps what its screen shows."""

import contextlib
import os
import re
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pexpect
import pyte

from tests.warm import HANGS, Warm

WHERE = "\x1b[6n"  # where is the cursor? a terminal answers


class Terminal:
    """One command in a terminal of its own.

    Args:
        arguments: what follows the program.
        home: where d3 keeps its files.
        warm: forks d3 instead of starting a program; `arguments` are then d3's own.
        constants, hold_at, hold_loading, largest_file: as for `Warm.start`.
    """

    def __init__(
        self,
        *arguments: str | Path,
        home: Path,
        columns: int = 80,
        rows: int = 24,
        program: str = sys.executable,
        warm: Warm | None = None,
        constants: Mapping[str, Any] | None = None,
        hold_at: int | None = None,
        hold_loading: bool = False,
        largest_file: int | None = None,
        **environment: str,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.5)
        self._stream = pyte.Stream(self.screen)
        self._rest = ""
        self.raw = ""  # every byte that was written, as text
        # Rich believes COLUMNS and LINES, which pytest-xdist sets, before the terminal itself.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("D3_") and name not in ("COLUMNS", "LINES")
        }
        kept |= {
            "D3_HOME": str(home),
            "D3_KERNELS": "torch",
            "TERM": "xterm-256color",
            "OMP_NUM_THREADS": "1",
        }
        kept |= environment
        self.is_dumb = kept["TERM"] in ("", "dumb", "unknown") or "INSIDE_EMACS" in kept
        words = [str(argument) for argument in arguments]
        self.child: Any  # `pexpect.spawn`, or what the tests use of it
        if warm is None:
            self.child = pexpect.spawn(
                program,
                words,
                dimensions=(rows, columns),
                encoding="utf-8",
                codec_errors="replace",
                env=kept,
            )
            self.child.delaybeforesend = None
        else:
            self.child = warm.start(
                words,
                kept,
                columns=columns,
                rows=rows,
                constants=constants,
                hold_at=hold_at,
                hold_loading=hold_loading,
                largest_file=largest_file,
            )

    def read(self, seconds: float = 0.05) -> None:
        """Takes what the command writes in these seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._take(min(left, 0.02)) and not self.child.isalive():
                return

    def _take(self, seconds: float) -> bool:
        """Takes what was written, waiting so long for the first of it; False if nothing was."""
        try:
            new = self.child.read_nonblocking(65536, timeout=seconds)
        except (pexpect.TIMEOUT, pexpect.EOF, OSError):
            return False
        self.raw += new
        *parts, last = (self._rest + new).split(WHERE)
        # The question may be cut in two.
        cut = next((n for n in (3, 2, 1) if last.endswith(WHERE[:n])), 0)
        last, self._rest = last[: len(last) - cut], last[len(last) - cut :]
        for part in parts:
            self._stream.feed(part)
            row, column = self.screen.cursor.y + 1, self.screen.cursor.x + 1
            self.child.send(f"\x1b[{row};{column}R")
        self._stream.feed(last)
        return True

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
        """The text on one line: for texts that may be wrapped."""
        return re.sub(r"\s+", " ", self.text)

    def send(self, text: str) -> None:
        """Types."""
        self.child.send(text)

    def line(self, text: str) -> None:
        """Types a line and Enter."""
        self.child.send(text + "\r")

    def paste(self, text: str) -> None:
        """Pastes a text, which may be long, as terminals do that mark a paste."""
        hand = threading.Thread(target=self.child.send, args=(f"\x1b[200~{text}\x1b[201~",))
        hand.start()
        while hand.is_alive():  # read meanwhile, or both sides might wait for the other
            self.read()

    def wait(self, what: str | Callable[[], object], seconds: float = HANGS) -> None:
        """Waits until the text contains this, or this is true."""
        deadline = time.monotonic() + seconds
        while True:
            if what() if callable(what) else what in self.plain:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"waited for {what!r} in vain; the screen:\n{self.text}")
            if not self._take(0.2):
                time.sleep(0.01)  # the command may have ended, and reading returns at once

    @property
    def ctrl_c_is_a_signal(self) -> bool:
        """Whether the terminal makes a signal of Ctrl-C, as it does beside a prompt."""
        return bool(termios.tcgetattr(self.child.child_fd)[3] & termios.ISIG)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self.child.child_fd)[3] & termios.ECHO)

    @property
    def takes_keys(self) -> bool:
        """Whether the prompt takes keys. A dumb terminal keeps them for the prompt."""
        return self.is_dumb or not self.ctrl_c_is_a_signal

    def resize(self, columns: int, rows: int) -> None:
        """Resizes the window."""
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def end(self, seconds: float = HANGS) -> int:
        """Waits for the command to end; returns its exit code, 128 + n for a signal."""
        deadline = time.monotonic() + seconds
        while self.child.isalive() and time.monotonic() < deadline:
            self._take(0.02)
        self.read()
        assert not self.child.isalive(), f"still running; the screen:\n{self.text}"
        code = self.child.exitstatus
        return 128 + self.child.signalstatus if code is None else code

    def close(self) -> None:
        """Ends the command, whatever it does."""
        with contextlib.suppress(pexpect.ExceptionPexpect, OSError):
            self.child.close(force=True)
