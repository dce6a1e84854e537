"""JSON files that come with a model, read within bounds.

A stranger may have written them. They may be too large for memory, nested deeper than a parser's
stack, or hold a name twice, so that two programs read different values. Knows nothing of what the
files mean.
"""

import json
from pathlib import Path
from typing import Any

from d3cli.base.bounded_files import MIB, FileKind
from d3cli.base.errors import ModelError, one_line

# Each hint is for one cause. This one is for bytes that no program would have written.
BROKEN_FILES = "its files may be damaged or incomplete: download the model again"
BAD_CONFIG = "correct config.json, or copy the one that came with the weights"
BAD_METADATA = "download it again, or get another conversion of the model"
BROKEN_LINK = "the file that it points to is gone: restore it, or download the model again"
BAD_JSON = "correct it, or download it again if it was cut short"
LFS_HINT = "run git lfs pull in its directory"
OLLAMA = "`ollama show --modelfile {}` prints the path of a model's file; give that file"
DO_NOT_USE = "do not use this model"
OTHER_FORMAT = "use the safetensors of the model that it was converted from"

# By file name: the most bytes, and the most objects and lists. Several times what published models
# have.
BOUNDS = {
    "tokenizer.json": (128 * MIB, 2_000_000),
    "model.safetensors.index.json": (32 * MIB, 1_000),
    "tokenizer_config.json": (16 * MIB, 200_000),
    "config.json": (MIB, 20_000),
}
OTHER_BOUNDS = (16 * MIB, 200_000)
DEEPEST = 32


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file.

    Raises:
        ModelError: the file is damaged, not an object, or beyond a bound.
    """
    largest, most = BOUNDS.get(path.name, OTHER_BOUNDS)
    found = model_file(largest).find(path)
    if found is None:
        return {}
    if is_pointer(found):
        raise ModelError(f"{path} is a Git LFS pointer, not the file itself", LFS_HINT)
    try:
        text = found.decode()
        _refuse_many(text, most)
        data = json.loads(text, object_pairs_hook=no_name_twice)
        if isinstance(data, dict):
            _refuse_deep(data)
            return data
    except (_AbsurdError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {str(error)[:200]}", DO_NOT_USE) from error
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {str(error)[:200]}", BAD_JSON) from error
    raise ModelError(f"{path} is not a JSON object", BAD_JSON)


class _AbsurdError(ValueError):
    """A file that is beyond what any model has."""


def is_pointer(beginning: bytes) -> bool:
    """Whether a file with this beginning only says where Git LFS keeps the real one."""
    return beginning.startswith(b"version https://git-lfs")


def model_file(largest: int) -> FileKind:
    """A file that comes with a model and has at most `largest` bytes."""
    return FileKind(what="file", largest=largest, error=ModelError, large_hint=DO_NOT_USE)


def unreadable(path: Path, error: Exception) -> ModelError:
    """The error for a file of weights that the system or a parser cannot read."""
    if isinstance(error, PermissionError):
        hint = "check its permissions"
    elif isinstance(error, OSError):
        hint = "check the disk"
    else:
        hint = BROKEN_FILES
    return ModelError(f"{path} cannot be read: {one_line(error)}", hint)


def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for `json.loads` that raises ValueError if a name occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it has {twice[:60]!r} twice")
    return found


def _refuse_many(text: str, most: int) -> None:
    if text.count("{") + text.count("[") > most:  # also counts brackets in strings
        raise _AbsurdError(f"it has more than {most:,} objects and lists")


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
    raise _AbsurdError(f"it is nested more than {DEEPEST} deep")
