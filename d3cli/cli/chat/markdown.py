"""Shows a reply on a terminal as it arrives: Markdown or plain, reasoning dimmed, all of it inert.

Finished blocks go to the scrollback and stay. Only the open block, the last one, is redrawn, and
only the part of it that fits the screen.
"""

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.live import Live
from rich.segment import Segment, SegmentLines
from rich.text import Text
from rich.theme import Theme

from d3cli.base.inert import inert
from d3cli.cli.chat.markdown_elements import ReplyMarkdown, readable
from d3cli.cli.chat.markdown_parser import split_blocks
from d3cli.text.reasoning import ReasoningSplitter

THEME = Theme(
    {
        "markdown.code": "cyan",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold underline",
        "markdown.h3": "bold",
        "markdown.h4": "bold",
        "markdown.h5": "bold",
        "markdown.h6": "bold",
        "markdown.block_quote": "dim",
        "markdown.item.bullet": "bold",
        "markdown.item.number": "bold",
    }
)
# The fewest seconds between two drawings, and the share of the time that drawing may take.
INTERVAL, SHARE = 0.08, 0.2
HIDDEN = "(thinking; /think shows it)"
# Screen lines that the open block leaves free.
FREE_LINES = 2


class ReplyView:
    """Shows one reply.

    Args:
        console: the console of standard output.
        plain: show the text as it is, not as Markdown.
        inside: the tag of reasoning that the reply begins in; empty for none.
        hide: show a line in place of the reasoning.

    Raises (from all methods):
        OSError: the terminal is gone.
    """

    def __init__(
        self, console: Console, *, plain: bool, inside: str = "", hide: bool = False
    ) -> None:
        self._console = console
        self._splitter = ReasoningSplitter(inside)
        self._answer = PlainText(console) if plain else MarkdownText(console)
        self._reasoning = PlainText(console, style="dim")
        self._hide = hide
        self._skip_newlines = False  # those between reasoning that is hidden and the answer

    def push(self, text: str) -> None:
        """Shows more of the reply."""
        for part, thinking in self._splitter.push(text):
            self._show(part, thinking)

    def finish(self) -> None:
        """Shows the rest and ends the line."""
        for part, thinking in self._splitter.flush():
            self._show(part, thinking)
        self._reasoning.finish()
        self._answer.finish()

    def _show(self, part: str, thinking: bool) -> None:
        if thinking and self._hide:
            if not self._skip_newlines:
                self._reasoning.push(f"{HIDDEN}\n")
            self._skip_newlines = True
        elif thinking:
            self._reasoning.push(part)
        else:
            part = part.lstrip("\n") if self._skip_newlines else part
            self._skip_newlines = self._skip_newlines and not part
            self._reasoning.finish()
            self._answer.push(part)


class PlainText:
    """Shows text as it is."""

    def __init__(self, console: Console, style: str = "") -> None:
        self._console, self._style = console, style
        self._open_line = False

    def push(self, text: str) -> None:
        """Shows more text."""
        # Not wrapped: a terminal wraps lines itself, and wraps them again when it is resized.
        self._console.print(Text(inert(text), style=self._style), end="", soft_wrap=True)
        self._console.file.flush()
        self._open_line = not text.endswith("\n") and (bool(text) or self._open_line)

    def finish(self) -> None:
        """Ends the line."""
        if self._open_line:
            self._console.print()
        self._open_line = False


class MarkdownText:
    """Shows Markdown, block by block."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""  # the source from the open block on
        self._printed = 0  # lines of the open block that did not fit the screen and are printed
        self._begun = False  # whether a block was printed
        self._live: Live | None = None
        self._next = 0.0

    def push(self, text: str) -> None:
        """Takes more text, and draws it if the last drawing is long enough ago."""
        self._open += inert(text)
        began = time.monotonic()
        if began < self._next:
            return
        self._draw()
        now = time.monotonic()
        self._next = now + max(INTERVAL, (now - began) / SHARE)

    def finish(self) -> None:
        """Prints the open block and ends the line."""
        self._end_blocks(split_blocks(self._open))
        self._open = ""
        if self._live is not None:
            self._live.update("")
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        *finished, self._open = split_blocks(self._open, complete=False)
        self._end_blocks(finished)
        lines = self._render(self._open)
        excess = len(lines) - self._printed - max(1, self._console.height - FREE_LINES)
        if excess > 0:
            self._print(lines[self._printed : self._printed + excess])
            self._printed += excess
        self._show(lines[self._printed :])

    def _end_blocks(self, blocks: Sequence[str]) -> None:
        for block in blocks:
            lines = self._render(block)[self._printed :]
            self._show([])
            self._print(lines)
            self._printed = 0
            self._begun = self._begun or bool(block.strip())

    def _show(self, lines: list[list[Segment]]) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="visible",
            )
            self._live.start()
            self._console.show_cursor(True)  # a suspended process must not leave it hidden
        self._live.update(SegmentLines(lines, new_lines=True) if lines else "", refresh=True)

    def _print(self, lines: list[list[Segment]]) -> None:
        if lines:
            self._console.print(SegmentLines(lines, new_lines=True), end="")

    def _render(self, source: str) -> list[list[Segment]]:
        """The lines of a block, without Rich's padding, so that code can be copied."""
        shown = readable(source)
        lines = self._lines(shown)
        if isinstance(shown, ReplyMarkdown):
            seen = _characters("".join(text for line in lines for text, *_ in line))
            if _characters(source) - seen - shown.used_as_markup:
                # Markdown would hide something, such as cells that do not fit.
                lines = self._lines(Text(source, overflow="fold"))
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            lines.pop(0)
        return [[], *lines] if self._begun and lines else lines

    def _lines(self, shown: RenderableType) -> list[list[Segment]]:
        return [_stripped(line) for line in self._console.render_lines(shown, pad=False)]


def _characters(text: str) -> Counter[str]:
    return Counter("".join(text.split()))


def _stripped(line: list[Segment]) -> list[Segment]:
    """A line without control codes and without blanks at its end, its text inert."""
    kept = [Segment(inert(text), style) for text, style, control in line if not control]
    while kept:
        text, style, _ = kept.pop()
        if text.rstrip():
            return [*kept, Segment(text.rstrip(), style)]
    return []


def reply_console() -> Console:
    """The console of standard output, with the theme for replies."""
    return Console(theme=THEME, highlight=False, markup=False, emoji=False)
