"""A chat's standard output: lines of text, rows of names and values, replies. All of it inert."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from d3cli.base.inert import inert
from d3cli.cli.chat.markdown import ReplyView
from d3cli.text.reasoning import split_reasoning

# The most that is shown of an old message.
MOST_LINES, MOST_CHARACTERS = 100, 8000


class Screen:
    """Writes to a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def width(self) -> int:
        """Columns."""
        return self._console.width

    def print(self, text: str, style: str = "") -> None:
        """Prints text."""
        self._console.print(Text(inert(text), style=style, overflow="fold"))

    def print_rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Prints names and values in two columns."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in rows:
            grid.add_row(Text(inert(name)), Text(inert(value)))
        self._console.print(grid)

    def reply_view(self, *, plain: bool, inside: str = "", hide: bool = False) -> ReplyView:
        """A view that shows one reply as it arrives; `inside` and `hide` as for `ReplyView`."""
        plain = plain or self._console.is_dumb_terminal
        return ReplyView(self._console, plain=plain, inside=inside, hide=hide)

    def show_message(self, role: str, text: str, *, plain: bool, hide: bool = False) -> None:
        """Shows an old message, only its end if it is long; `hide` leaves out its reasoning."""
        if hide and role == "assistant":
            text = split_reasoning(text)[1]
        text = shortened(text)
        if role == "user":
            self.print(f">>> {text}", "dim")
            return
        view = self.reply_view(plain=plain)
        view.push(text)
        view.finish()


def shortened(text: str) -> str:
    """The end of a long text, after a line that says how much is left out."""
    lines = text.split("\n")
    shown = "\n".join(lines[-MOST_LINES:])[-MOST_CHARACTERS:]
    left_out = len(text) - len(shown)
    return f"… {left_out:,} characters …\n{shown}" if left_out else text
