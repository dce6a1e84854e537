"""Pages say what is so: generated ones are current, and the architecture is as drawn."""

import re
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


def test_imports_go_one_way_as_the_architecture_says() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = [name.replace("/", ".") for name in re.findall(r"^\| `([\w/]+)` \|", table, re.M)]
    place = {name: number for number, name in enumerate(names)}
    package = ROOT / "d3cli"
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        if "__" in module:
            continue
        assert module in place, f"docs/architecture.md lacks {module}"
        for other in re.findall(r"from d3cli\.([\w.]+) import", path.read_text(encoding="utf-8")):
            if other == "cli":  # the package itself, for modules of it
                continue
            assert place[other] < place[module], f"{module} imports {other}, which stands below it"
