"""What a terminal in memory shows, as an SVG. Needs the test dependencies (pexpect, pyte)."""

import io
import re
from itertools import groupby

import pyte
from pyte.screens import Char
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

NAMES = {"brown": "yellow", "brightblack": "bright_black"}  # pyte's names, and Rich's
DIM, GREY = 2, 90


class GreyScreen(pyte.HistoryScreen):
    """A screen that shows dim text as grey, because pyte drops the attribute."""

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        if private:  # not about looks at all
            return
        grey = (GREY if attribute == DIM else attribute for attribute in attributes)
        super().select_graphic_rendition(*grey)


def style_of(char: Char) -> Style:
    """A cell's look."""
    named = char.fg not in ("default", "") and not char.fg[0].isdigit()
    colour = Color.parse(NAMES.get(char.fg, char.fg)) if named else None
    return Style(color=colour.name if colour else None, bold=char.bold, italic=char.italics)


def picture(screen: pyte.Screen) -> Text:
    """What the screen shows, without empty lines at the end."""
    used = 1 + max(row for row, text in enumerate(screen.display) if text.strip())
    found = Text()
    for row in range(used):
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        for style, run in groupby(cells, style_of):
            found.append("".join(char.data for char in run), style)
        found.append("\n")
    return found


def as_svg(found: Text, width: int, title: str) -> str:
    """An SVG window with this text, which loads no fonts from elsewhere."""
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(found, end="")
    svg = console.export_svg(title=title, theme=SVG_EXPORT_THEME)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
