"""Records a chat with the built-in model in a pseudo-terminal, as docs/chat.svg.

    python scripts/record_chat.py

The picture shows the terminal's real output. Only the user's lines are scripted. Needs the test
dependencies (pexpect, pyte).
"""

import sys
import tempfile
from pathlib import Path

import pyte
from recording import GreyScreen, as_svg, picture

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
        svg = as_svg(picture(terminal.screen), COLUMNS, "d3 chat")
        terminal.close()
    (ROOT / "docs" / "chat.svg").write_text(svg, encoding="utf-8")
    print("wrote docs/chat.svg")


if __name__ == "__main__":
    main()
