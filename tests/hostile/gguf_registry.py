"""Collects hostile GGUF files by name, and helps to make them.

Each is a small change to a good file of `tests.gguf_models`. A change gets the folder in which the
model belongs, the good file's bytes, and a directory outside. It returns the path to ask for.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from tests.gguf_bytes import Gguf, Tensor, parse, typed

Change = Callable[[Path, bytes, Path], Path]
# By theme, then by name.
REFUSED_GGUF: dict[str, dict[str, Change]] = {
    theme: {} for theme in ("header", "metadata", "tokenizer", "files")
}
HARMLESS_GGUF: dict[str, Change] = {}  # look hostile, but must run and do nothing else
NAME = "model.gguf"


def refused(change: Change) -> Change:
    """For a change that writes the files itself."""
    REFUSED_GGUF["files"][change.__name__] = change
    return change


def in_bytes(change: Callable[[bytes], bytes]) -> Change:
    """A change of the file's bytes."""

    @wraps(change)
    def write(folder: Path, data: bytes, _: Path) -> Path:
        changed = change(data)
        assert changed != data
        (folder / NAME).write_bytes(changed)
        return folder / NAME

    return write


def in_parts(change: Callable[[Gguf], object]) -> Change:
    """A change of the file's keys, tensors or counts."""

    @wraps(change)
    def write(data: bytes) -> bytes:
        parts = parse(data)
        change(parts)
        return parts.encode()

    return in_bytes(write)


def keys(**changes: Any) -> Change:
    """Keys with other values, or (type, value); None leaves one out. ``__`` stands for a dot."""

    def change(parts: Gguf) -> None:
        for name, value in changes.items():
            key = name.replace("__", ".")
            parts.keys.pop(key, None)
            if value is not None:
                parts.keys[key] = value if isinstance(value, tuple) else typed(value)

    return in_parts(change)


def tensor(which: str = "blk.0.ffn_up.weight", **changes: Any) -> Change:
    """One tensor with another name, shape, type, place or data."""

    def change(parts: Gguf) -> None:
        [at] = [i for i, one in enumerate(parts.tensors) if one.name == which]
        fields = {field: getattr(parts.tensors[at], field) for field in Tensor.__slots__}
        parts.tensors[at] = Tensor(**fields | changes)

    return in_parts(change)
