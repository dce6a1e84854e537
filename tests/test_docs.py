"""Generated pages are current, and no page calls decayed output lossless."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The word in names, such as --lossless, `decode_lossless` and LosslessStats; and in prose.
NAMES = re.compile(
    r'(?:[-./_"`#|]|/regen |--for |drafts-of-)lossless\b|\blossless[_=.:"]|Lossless[A-Z]|LOSSLESS'
)
VARIABLES = re.compile(r"\blossless(?: =|[,(])|\(lossless\b|'lossless\b")
THE_MODE = re.compile(r"\blossless (?:mode|decoding|runs?|reply|replies)\b", re.IGNORECASE)


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


def test_only_the_lossless_mode_is_called_lossless() -> None:
    """Decay changes the output, so nothing else may use the word."""
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    for path in (*pages, *(ROOT / "d3cli").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = VARIABLES.sub("", text)
        rest = THE_MODE.sub("", NAMES.sub("", text)).lower()
        assert "lossless" not in rest, path
