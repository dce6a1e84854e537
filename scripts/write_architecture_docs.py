"""Writes the tree of modules in docs/architecture.md from their docstrings' first sentences."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "architecture.md"
# From the lowest package to the highest, as in pyproject.toml's import rules.
PACKAGES = (
    *("base", "depth", "files", "text", "kernels", "model"),
    *("decode", "scoring", "calibrate", "profile", "serve", "evals", "cli"),
)
COLUMN = 34  # where the sentences begin


def architecture_docs() -> str:
    """The page with its tree renewed."""
    page = TARGET.read_text(encoding="utf-8")
    tree = "\n".join(("```", "d3cli/", *_tree(ROOT / "d3cli", ""), "```"))
    return re.sub(r"```\nd3cli/\n.*?```", lambda _: tree, page, count=1, flags=re.DOTALL)


def _tree(directory: Path, indent: str) -> Iterator[str]:
    entries = sorted(_modules(directory), key=lambda path: path.stem)
    if not indent:
        entries = [directory / package for package in PACKAGES]
    for entry in entries:
        is_last = entry is entries[-1]
        name = indent + ("└── " if is_last else "├── ") + entry.name + "/" * entry.is_dir()
        source = entry / "__init__.py" if entry.is_dir() else entry
        yield f"{name:<{COLUMN}}{_first_sentence(source)}"
        if entry.is_dir():
            yield from _tree(entry, indent + ("    " if is_last else "│   "))


def _modules(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        is_package = (path / "__init__.py").exists()
        if is_package or (path.suffix == ".py" and not path.name.startswith("_")):
            yield path


def _first_sentence(source: Path) -> str:
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"\. (?=[A-Z`])", paragraph)[0].rstrip(".").replace("``", "")


if __name__ == "__main__":
    TARGET.write_text(architecture_docs(), encoding="utf-8")
    print(f"wrote {TARGET}")
