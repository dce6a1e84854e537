"""Records a chat with the built-in model in a pseudo-terminal, as docs/chat.svg.

    python scripts/record_chat.py

What stands in the picture is what the terminal showed: nothing is written by hand but the user's
lines. Needs the test dependencies (pexpect, pyte).
"""

import io
import re
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.terminal import Terminal  # noqa: E402

COLUMNS, ROWS = 94, 60
LINES = (
    "Tell me a story about a fox.",
    "/compare",
    "/regen alpha off",
    "What is 27 + 45?",
)
NAMES = {"brown": "yellow", "brightblack": "bright_black"}  # pyte's names, and Rich's
DIM, GREY = 2, 90


def style_of(char: Char) -> Style:
    """A cell's look."""
    named = char.fg not in ("default", "") and not char.fg[0].isdigit()
    colour = Color.parse(NAMES.get(char.fg, char.fg)) if named else None
    return Style(color=colour.name if colour else None, bold=char.bold, italic=char.italics)


class GreyScreen(pyte.HistoryScreen):
    """pyte forgets what is dim; grey comes near."""

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        if private:  # not about looks at all
            return
        grey = (GREY if attribute == DIM else attribute for attribute in attributes)
        super().select_graphic_rendition(*grey)


def main() -> None:
    pyte.HistoryScreen = GreyScreen
    with tempfile.TemporaryDirectory() as home:
        terminal = Terminal("-m", "d3cli", "chat", home=Path(home), columns=COLUMNS, rows=ROWS)
        terminal.wait(">>>")
        for line in LINES:
            terminal.read(1.0)
            terminal.line(line)
            terminal.read(1.0)
            terminal.wait(lambda: terminal.text.split("\n")[-1].startswith(">>>"))
            terminal.read(2.0)
        screen = terminal.screen
        used = 1 + max(row for row, text in enumerate(screen.display) if text.strip())
        picture = Text()
        for row in range(used):
            cells = [screen.buffer[row][column] for column in range(COLUMNS)]
            for style, run in groupby(cells, style_of):
                picture.append("".join(char.data for char in run), style)
            picture.append("\n")
        terminal.close()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(picture, end="")
    svg = console.export_svg(title="d3 chat", theme=SVG_EXPORT_THEME)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # it asks nobody for fonts
    (ROOT / "docs" / "chat.svg").write_text(svg, encoding="utf-8")
    print("wrote docs/chat.svg")


if __name__ == "__main__":
    main()
