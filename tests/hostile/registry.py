"""Collects hostile models by name, and helps to make them."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path, Path], None]

# Changes to a copy of the built-in model, by name. The second path is a directory outside it.
# That holds files that a model must not read; code that runs would write a sentinel there.
REFUSED: dict[str, Change] = {}
HARMLESS: dict[str, Change] = {}  # look hostile, but must run and do nothing else


def refused(change: Change) -> Change:
    REFUSED[change.__name__] = change
    return change


def harmless(change: Change) -> Change:
    HARMLESS[change.__name__] = change
    return change


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | changes))


def code(outside: Path) -> str:
    """Python code that writes the sentinel."""
    return (
        f"open({str(outside / 'sentinel')!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n"
    )


class Bomb:
    """Unpickling it runs a command."""

    def __init__(self, outside: Path) -> None:
        self.sentinel = outside / "sentinel"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.sentinel}'",)


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(path: Path, head: bytes, data: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + data)


def weights(model: Path) -> Path:
    return model / "model.safetensors"


def first_name(head: dict[str, Any]) -> str:
    return next(name for name in head if name != "__metadata__")


def change_tensor(model: Path, **changes: Any) -> None:
    head, data = header(weights(model))
    head[first_name(head)] |= changes
    write(weights(model), json.dumps(head).encode(), data)


def shard(model: Path, name: object) -> None:
    """Adds an index that names this shard for all weights."""
    head, _ = header(weights(model))
    names = dict.fromkeys((n for n in head if n != "__metadata__"), name)
    index = {"metadata": {}, "weight_map": names}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def replace_by_link(path: Path, target: str | Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def with_template(text: str) -> Change:
    """Another chat template, in which SENTINEL stands for the sentinel."""

    def change(model: Path, outside: Path) -> None:
        filled = text.replace("SENTINEL", str(outside / "sentinel"))
        (model / "chat_template.jinja").write_text(filled)

    return change


def in_holes(model: Path, wide: int) -> None:
    """Makes the MLPs so wide. Config and weights fit each other; what is added is a hole."""
    edit(model / "config.json", intermediate_size=wide)
    head, _ = header(weights(model))
    end = 0
    for name in sorted(name for name in head if name != "__metadata__"):
        shape, size = head[name]["shape"], 2
        head[name] |= {"shape": [wide if n == 384 else n for n in shape]}
        for n in head[name]["shape"]:
            size *= n
        head[name]["data_offsets"] = [end, end + size]
        end += size
    raw = json.dumps(head).encode()
    write(weights(model), raw, b"")
    os.truncate(weights(model), 8 + len(raw) + end)
