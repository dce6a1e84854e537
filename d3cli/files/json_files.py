"""JSON files that come with a model, read in bounds.

A stranger may have written them: too large for memory, nested deeper than a parser's stack, or with
a name twice, of which another program might take the other. Knows nothing of what they mean.
"""

import json
from pathlib import Path
from typing import Any

from d3cli.base.errors import ModelError

BROKEN_FILES = "its files may be damaged or incomplete: fetch the model again"
DO_NOT_USE = "do not use this model"

# Bytes, and objects and lists, by a file's name: several times what published models have.
BOUNDS = {
    "tokenizer.json": (128 << 20, 2_000_000),
    "model.safetensors.index.json": (32 << 20, 1_000),
    "tokenizer_config.json": (16 << 20, 200_000),
    "config.json": (1 << 20, 20_000),
}
OTHER_BOUNDS = (16 << 20, 200_000)
DEEPEST = 32


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ModelError: it is damaged, no object, or beyond a bound.
    """
    try:
        if not path.is_file():
            if path.exists() or path.is_symlink():
                raise ModelError(f"{path} is no regular file", BROKEN_FILES)
            return {}
        largest, most = BOUNDS.get(path.name, OTHER_BOUNDS)
        if path.stat().st_size > largest:
            raise ModelError(
                f"{path} has {path.stat().st_size:,} bytes, and may have {largest:,}",
                DO_NOT_USE,
            )
        text = path.read_text(encoding="utf-8")
        _refuse_many(text, most)
        data = json.loads(text, object_pairs_hook=no_name_twice)
        if isinstance(data, dict):
            _refuse_deep(data)
            return data
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {str(error)[:200]}", BROKEN_FILES) from error
    raise ModelError(f"{path} is not a JSON object", BROKEN_FILES)


def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object of these, or ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it has {twice[:60]!r} twice")
    return found


def _refuse_many(text: str, most: int) -> None:
    if text.count("{") + text.count("[") > most:  # those in strings, too: of no matter here
        raise ValueError(f"it has more than {most:,} objects and lists")


def _refuse_deep(data: dict[str, Any]) -> None:
    level: list[Any] = [data]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")
