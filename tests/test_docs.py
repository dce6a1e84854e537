"""Generated pages are current, and no page calls decayed output lossless."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("script", "function", "page"),
    [
        ("write_cli_docs.py", "cli_docs", "cli.md"),
        ("write_models_docs.py", "models_docs", "models.md"),
        ("write_architecture_docs.py", "architecture_docs", "architecture.md"),
    ],
)
def test_the_page_is_current(script: str, function: str, page: str) -> None:
    write: Callable[[], str] = runpy.run_path(str(ROOT / "scripts" / script))[function]
    current = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert write() == current, "run: make docs"


def test_output_changed_by_decay_is_never_called_lossless() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    sources = (ROOT / "d3cli").rglob("*.py")
    for path in (*pages, *sources):
        assert "lossless" not in path.read_text(encoding="utf-8").lower(), path
