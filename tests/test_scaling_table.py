"""The arithmetic of docs/scaling.md is that of the script."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_table_is_current() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "scaling_table.py"))
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert script["table"]() in page, "put the output of scripts/scaling_table.py into the page"
