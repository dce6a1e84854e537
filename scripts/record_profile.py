"""Records d3 profile on the built-in model: docs/profile.svg, and docs/report.png of its report.

    python scripts/record_profile.py

The pictures show the real output of a terminal and a browser. Needs the test dependencies
(pexpect, pyte) and Chromium.
"""

import sys
import tempfile
import time
from pathlib import Path

import pyte
from recording import GreyScreen, as_svg, picture

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.browser import Browser  # noqa: E402
from tests.terminal import Terminal  # noqa: E402

COLUMNS, ROWS = 100, 28
SHOWN_FROM = 56  # the step from which on a picture is taken
REPORT_WIDTH, REPORT_HEIGHT = 1000, 1240
PROMPT = "Tell me a story about a fox."


def main() -> None:
    pyte.HistoryScreen = GreyScreen
    with tempfile.TemporaryDirectory() as home:
        report = Path(home) / "report.html"
        terminal = Terminal(
            "-m", "d3cli", "profile", PROMPT, "--max-tokens", "200", "--compare", "--needed",
            "--layers", "--output-file", report,
            home=Path(home), columns=COLUMNS, rows=ROWS, OMP_NUM_THREADS="2",
        )  # fmt: skip
        svg = ""
        while terminal.child.isalive():
            terminal.read(0.02)
            lines = terminal.screen.display
            last = [line.split()[0] for line in lines[-2:] if line.split()]
            whole = all(line.strip() for line in lines[:-1])
            if not svg and whole and last and last[-1].isdigit() and int(last[-1]) >= SHOWN_FROM:
                svg = as_svg(picture(terminal.screen), COLUMNS, "d3 profile")
        browser = Browser(REPORT_WIDTH, REPORT_HEIGHT)
        browser.open(report)
        browser.prefer("light")
        browser.ask("Emulation.setScrollbarsHidden", hidden=True)
        time.sleep(1)
        browser.picture(ROOT / "docs" / "report.png")
        browser.close()
    (ROOT / "docs" / "profile.svg").write_text(svg, encoding="utf-8")
    print("wrote docs/profile.svg and docs/report.png")


if __name__ == "__main__":
    main()
