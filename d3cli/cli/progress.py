"""Progress on a terminal's stderr: spinners, bars, and a screen that is redrawn.

Shows nothing where stderr is not a terminal. Text that passes is inert.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from d3cli.base.inert import inert
from d3cli.cli.terminal import screen_left_when_suspended

SPINNER_WIDTH = 20  # on a narrower terminal a spinner would wrap and overwrite other lines
SHORTEST_SCREEN = 8  # lines; a shorter terminal has no room for a live table
# Tokens. A longer prompt gets a bar while it is read; for a shorter one it would only flicker.
PROGRESS_FROM = 1024


class Progress:
    """Shows on a console how far something is.

    Attributes:
        console: where it is shown.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[float], None]]:
        """Shows a spinner. Yields a function that adds the share that is done."""
        if not self.console.is_terminal or self.console.width < SPINNER_WIDTH:
            yield lambda _: None
            return
        with self.console.status(Text(inert(text), style="dim")) as status:
            yield lambda share: status.update(Text(f"{inert(text)} {share:.0%}", style="dim"))

    @contextmanager
    def live(self) -> Iterator[tuple[Live | None, list[float]]]:
        """A screen that the caller redraws; None if stderr cannot be redrawn.

        It is the terminal's alternate screen, so resizing the window leaves no remains. The list
        receives the seconds of each stop by Ctrl-Z.
        """
        console = self.console
        small = console.width < SPINNER_WIDTH or console.height < SHORTEST_SCREEN
        if not console.is_terminal or console.is_dumb_terminal or small:
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
        """Exhausts an iterator of counts up to `total`, and shows a bar."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Bar(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as bar:
            task = bar.add_task(text, total=total)
            for count in done:
                bar.update(task, completed=count)

    def follow(self, steps: Iterable[tuple[str, float]]) -> None:
        """Exhausts an iterator of what is being done and the share that is done; shows a bar."""
        columns = (
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
        )
        with Bar(
            *columns,
            console=self.console,
            transient=True,
            expand=True,
            disable=not self.console.is_terminal,
        ) as bar:
            task = bar.add_task("", total=1.0)
            for text, share in steps:
                bar.update(task, completed=share, description=escape(inert(text)))
