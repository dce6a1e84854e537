"""The one sink of the command line: replies and JSON go to stdout, everything else to stderr.

Text that passes is inert: text from a model, a file or an error cannot command the terminal.
"""

import csv
import io
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from d3cli.base.errors import D3Error, Setting, Spell, Words, spelled
from d3cli.base.inert import inert
from d3cli.cli.progress import Progress
from d3cli.kernels.process import quiet_libraries


def json_line(value: dict[str, Any]) -> str:
    """One JSON object as a line of ASCII, so that any text in it is inert."""
    return json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f") + "\n"


class ClosedPipe(Exception):  # noqa: N818 - not an error: the reader has had enough
    """The reader of stdout has closed it."""


class WriteError(D3Error):
    """Standard output cannot be written, for example because the disk is full."""


# Settings whose flag has another name than in Python.
FLAGS = {"max_seconds": "max-time"}


def flag(setting: Setting) -> str:
    """A setting as the command line names it: ``--dtype`` or ``--dtype float32``."""
    name = FLAGS.get(setting.name, setting.name.replace("_", "-"))
    return f"--{name} {shlex.quote(setting.value)}" if setting.value else f"--{name}"


class Output:
    """Where a command writes.

    Args:
        spell: how sentences name settings.
        stderr: where remarks and errors go; None is stderr.

    Attributes:
        progress: spinners and bars on stderr.
    """

    def __init__(self, spell: Spell = flag, stderr: TextIO | None = None) -> None:
        self.spell = spell
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a test's stream may not have it
                stream.reconfigure(errors="replace")
        self._stdout: TextIO | None = sys.stdout  # None where the shell closed it
        self._stderr = Console(file=stderr, stderr=True, highlight=False, markup=False, emoji=False)
        self.progress = Progress(self._stderr)
        self._at_line_start = True

    @property
    def is_terminal(self) -> bool:
        """Whether stderr is a terminal."""
        return self._stderr.is_terminal

    @property
    def stdout_width(self) -> int:
        """The width of stdout's terminal in columns; 0 if stdout is not a terminal."""
        if not (self._stdout and self._stdout.isatty()):
            return 0
        return Console().width

    def check_stdout(self) -> None:
        """Raises WriteError if the shell has closed stdout."""
        if self._stdout is None:
            raise WriteError("standard output is closed", "redirect it to a file or a pipe")

    def quiet_libraries(self) -> None:
        """Silences transformers and the hub, before they are imported."""
        quiet_libraries(progress_bars=self.is_terminal)

    def write(self, text: str) -> None:
        """Writes part of a reply, without buffering.

        Raises:
            ClosedPipe: the reader has gone.
            WriteError: it cannot be written.
        """
        if text:
            self.document(inert(text))

    def document(self, text: str) -> None:
        """Writes a text that is not for terminals, such as HTML, as it is.

        Raises:
            ClosedPipe: the reader has gone.
            WriteError: it cannot be written.
        """
        self.check_stdout()
        assert self._stdout is not None
        # Set before the write, because a signal may come between the two.
        self._at_line_start = text.endswith("\n")
        try:
            self._stdout.write(text)
            self._stdout.flush()
        except BrokenPipeError as error:
            self._abandon_stdout()
            raise ClosedPipe from error
        except OSError as error:
            self._abandon_stdout()
            raise WriteError(
                f"cannot write to standard output: {error.strerror}", "check the disk"
            ) from error

    def end_line(self) -> None:
        """Ends the reply's last line, unless it has ended."""
        if not self._at_line_start:
            self.write("\n")

    def json(self, value: dict[str, Any]) -> None:
        """Writes one JSON object as a line."""
        self.write(json_line(value))

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, headed: bool = False
    ) -> None:
        """Writes rows to stdout: aligned on a terminal, separated by tabs in a pipe.

        Args:
            headed: writes the header into a pipe too.
        """
        if not self.stdout_width:
            for row in [header, *rows] if headed else rows:
                self.write("\t".join(" ".join(cell.split()) for cell in row) + "\n")
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in header:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*(Text(inert(cell)) for cell in row))
        Console(highlight=False).print(table)

    def csv(self, rows: Iterable[Sequence[object]]) -> None:
        """Writes comma-separated rows to stdout."""
        for row in rows:
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow(row)
            self.write(line.getvalue())

    def note(self, words: Words) -> None:
        """Writes a remark to stderr."""
        self._say(Text(inert(spelled(words, self.spell)), style="dim"))

    def error(self, message: Words, hint: Words = "") -> None:
        """Writes an error to stderr: one line, and another one with the hint."""
        label = Text("error: ", style="bold red")
        text = spelled(message, self.spell)
        self._say(label + Text(inert(_one_line(text)), style="default"))
        if hint:
            text = spelled(hint, self.spell)
            self._say(Text("hint: " + inert(_one_line(text)), style="dim"))

    def failure(self, error: Exception) -> None:
        """Writes an error that was caught, with its hint."""
        if isinstance(error, D3Error):
            self.error(*error.told(self.spell))
        elif isinstance(error, MemoryError):
            self.error(f"out of memory: {error or 'MemoryError'}", "/clear, or a shorter message")
        else:
            self.error(f"the system refused: {error}", "check the disk and the permissions")

    def _say(self, text: Text) -> None:
        try:
            # Lines are folded at words on a terminal only.
            self._stderr.print(text, soft_wrap=not self.is_terminal)
        except OSError:  # a broken stderr must not cost the reply on stdout
            return

    @staticmethod
    def _abandon_stdout() -> None:
        """Keeps Python from failing again when it flushes stdout at exit."""
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, ValueError):  # a stream without a descriptor has nothing to flush
            return


def _one_line(text: str) -> str:
    return " ".join(text.split())
