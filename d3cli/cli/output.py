"""The one sink of the command line: replies and JSON to stdout, everything else to stderr.

Whatever passes is inert: text from a model, a file or an error cannot command the terminal.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from d3cli.base.errors import D3Error, Setting, Spell, Words, spelled
from d3cli.base.inert import inert
from d3cli.cli.terminal import screen_left_when_suspended
from d3cli.kernels.process import quiet_libraries

SPINNER_WIDTH = 20  # narrower, a spinner would wrap and redraw over other lines
SHORTEST_SCREEN = 8  # lines, below which a live table shows nothing
# From so many tokens to read on, a bar shows how far it is; below, it would only flicker.
PROGRESS_FROM = 1024


def json_line(value: dict[str, Any]) -> str:
    """One JSON object as a line, ASCII only, so that raw text in it is inert too."""
    return json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f") + "\n"


class ClosedPipe(Exception):  # noqa: N818 - not an error: the reader has had enough
    """Whoever reads stdout has gone."""


class WriteError(D3Error):
    """Standard output cannot be written: a full disk, say."""


# Settings whose flag has another name than in Python.
FLAGS = {"max_seconds": "max-time"}


def flag(setting: Setting) -> str:
    """A setting as the command line names it: ``--dtype`` or ``--dtype float32``."""
    name = FLAGS.get(setting.name, setting.name.replace("_", "-"))
    return f"--{name} {setting.value}".rstrip()


class Output:
    """Where a command writes.

    Args:
        spell: how sentences name settings.
    """

    def __init__(self, spell: Spell = flag) -> None:
        self.spell = spell
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a test's stream may not have it
                stream.reconfigure(errors="replace")
        self._stdout: TextIO | None = sys.stdout  # None where the shell closed it
        self._stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._at_line_start = True

    @property
    def is_terminal(self) -> bool:
        """Whether stderr is one, so that progress may be shown."""
        return self._stderr.is_terminal

    @property
    def stdout_width(self) -> int:
        """The columns of stdout's terminal; 0 where it is none."""
        if not (self._stdout and self._stdout.isatty()):
            return 0
        return Console().width

    def check_stdout(self) -> None:
        """Raises WriteError where the shell has closed stdout."""
        if self._stdout is None:
            raise WriteError("standard output is closed", "redirect it to a file or a pipe")

    def quiet_libraries(self) -> None:
        """Silences transformers and the hub, before they are imported."""
        quiet_libraries(progress_bars=self.is_terminal)

    def write(self, text: str) -> None:
        """Part of a reply, at once.

        Raises:
            ClosedPipe: nobody reads.
            WriteError: it cannot be written.
        """
        if text:
            self.document(inert(text))

    def document(self, text: str) -> None:
        """A text that is not for terminals, as it is.

        Raises:
            ClosedPipe: nobody reads.
            WriteError: it cannot be written.
        """
        self.check_stdout()
        assert self._stdout is not None
        # Before the write, since a signal may come between the two.
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
                f"cannot write to standard output: {error.strerror}", "check the disk it goes to"
            ) from error

    def end_line(self) -> None:
        """Ends the reply's last line, where it does not end by itself."""
        if not self._at_line_start:
            self.write("\n")

    def json(self, value: dict[str, Any]) -> None:
        """One JSON object, inert as it is."""
        self.write(json_line(value))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns on stdout: aligned on a terminal, separated by tabs in a pipe."""
        if not self.stdout_width:
            for row in rows:
                self.write("\t".join(" ".join(cell.split()) for cell in row) + "\n")
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in header:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*(Text(inert(cell)) for cell in row))
        Console(highlight=False).print(table)

    def csv(self, rows: Iterable[Sequence[object]]) -> None:
        """Comma-separated rows on stdout."""
        for row in rows:
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow(row)
            self.write(line.getvalue())

    def note(self, words: Words) -> None:
        """A line about what happens, on stderr."""
        self._say(Text(inert(spelled(words, self.spell)), style="dim"))

    def error(self, message: Words, hint: Words = "") -> None:
        """One line, and one with what to do next."""
        label = Text("error: ", style="bold red")
        text = spelled(message, self.spell)
        self._say(label + Text(inert(_one_line(text)), style="default"))
        if hint:
            text = spelled(hint, self.spell)
            self._say(Text("hint: " + inert(_one_line(text)), style="dim"))

    def failure(self, error: Exception) -> None:
        """An error after which the command goes on."""
        if isinstance(error, D3Error):
            self.error(*error.told(self.spell))
        elif isinstance(error, MemoryError):
            self.error(f"out of memory: {error or 'MemoryError'}", "/clear, or a shorter message")
        else:
            self.error(f"the system refused: {error}", "check the disk and the permissions")

    def _say(self, text: Text) -> None:
        try:
            # Only a terminal is folded at words; a log keeps its lines.
            self._stderr.print(text, soft_wrap=not self.is_terminal)
        except OSError:  # nobody can be told; the reply on stdout must not suffer for it
            return

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[float], None]]:
        """Shows that something takes a moment, and the share that is done, where it is told it.

        On a terminal only.
        """
        if not self.is_terminal or self._stderr.width < SPINNER_WIDTH:
            yield lambda _: None
            return
        with self._stderr.status(Text(inert(text), style="dim")) as status:
            yield lambda share: status.update(Text(f"{inert(text)} {share:.0%}", style="dim"))

    @contextmanager
    def live(self) -> Iterator[tuple[Live | None, list[float]]]:
        """A screen that is drawn anew where asked to; None where stderr cannot be redrawn.

        It is the terminal's other screen, so that a window of another size leaves no remains.
        Beside it, for how many seconds each Ctrl-Z has stopped the process so far.
        """
        console = self._stderr
        small = console.width < SPINNER_WIDTH or console.height < SHORTEST_SCREEN
        if not self.is_terminal or console.is_dumb_terminal or small:
            yield None, []
            return
        screen = Live(
            console=console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with screen_left_when_suspended() as stops, screen as live:
            yield live, stops

    def track(self, done: Iterator[int], total: int, text: str) -> None:
        """Exhausts an iterator of counts, with a progress bar on a terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, console=self._stderr, transient=True, disable=not self.is_terminal
        ) as progress:
            task = progress.add_task(text, total=total)
            for count in done:
                progress.update(task, completed=count)

    def follow(self, steps: Iterable[tuple[str, float]]) -> None:
        """Exhausts an iterator of what is done and the share that is, with a bar on a terminal."""
        columns = (
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
        )
        with Progress(
            *columns,
            console=self._stderr,
            transient=True,
            expand=True,
            disable=not self.is_terminal,
        ) as progress:
            task = progress.add_task("", total=1.0)
            for text, share in steps:
                progress.update(task, completed=share, description=escape(inert(text)))

    @staticmethod
    def _abandon_stdout() -> None:
        """Keeps Python from failing once more when it flushes stdout at exit."""
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, ValueError):  # a stream without a descriptor has nothing to flush
            return


def _one_line(text: str) -> str:
    return " ".join(text.split())
