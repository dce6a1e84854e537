"""Writes docs/cli.md from the command line itself: python scripts/write_cli_docs.py."""

import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"


def cli_docs() -> str:
    """The reference of all commands as Markdown, as Typer's own documentation tool writes it."""
    command = [sys.executable, "-m", "typer", "d3cli.cli.app", "utils", "docs", "--name", "d3"]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


if __name__ == "__main__":
    TARGET.write_text(cli_docs(), encoding="utf-8")
    print(f"wrote {TARGET}")
