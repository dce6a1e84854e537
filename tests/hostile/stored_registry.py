"""Collects hostile files that d3 reads besides models, by the command that reads them.

A door is a kind of file with the command line that reads it. A change makes the file: it gets the
path, the bytes of a good file, and a directory outside.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Change = Callable[[Path, bytes, Path], object]
TERABYTE = 1 << 40
DEEP = 200_000


@dataclass
class Door:
    """What reads a kind of file.

    Attributes:
        name: of the kind of file: "trace".
        file: its name, in the working directory or, if `in_home`, in d3's home.
        command: the command line; FILE stands for the path.
        ignored: what a note says of a bad file that does not end the command; None if it does.
        refused, harmless: the changes by name.
    """

    name: str
    file: str
    command: tuple[str, ...]
    in_home: bool = False
    ignored: str | None = None
    refused: dict[str, Change] = field(default_factory=dict)
    harmless: dict[str, Change] = field(default_factory=dict)


DOORS: list[Door] = []


def door(name: str, file: str, *command: str, **more: Any) -> Door:
    found = Door(name, file, command, **more)
    DOORS.append(found)
    return found


def content(data: bytes | str) -> Change:
    """A file with this content."""
    raw = data.encode() if isinstance(data, str) else data
    return lambda path, *_: path.write_bytes(raw)


def in_json(change: Callable[[Any], Any]) -> Change:
    """A good JSON document that a function changes in place, or replaces by what it returns."""

    def write(path: Path, good: bytes, _: Path) -> None:
        data = json.loads(good)
        changed = change(data)
        path.write_text(json.dumps(data if changed is None else changed))

    return write


def put(value: Any, *way: str | int) -> Change:
    """A good JSON document with another value at one place."""

    def change(data: Any) -> None:
        for step in way[:-1]:
            data = data[step]
        data[way[-1]] = value

    return in_json(change)


def put_text(text: str, *way: str | int) -> Change:
    """As `put`, for a value that Python would not write: a number of any length, a name twice."""
    mark = "a mark that stands nowhere else"

    def write(path: Path, good: bytes, outside: Path) -> None:
        put(mark, *way)(path, good, outside)
        path.write_text(path.read_text().replace(json.dumps(mark), text))

    return write


def link(target: str) -> Change:
    return lambda path, *_: path.symlink_to(target)


def hole(beginning: bytes = b"") -> Change:
    """A file of a terabyte, nearly all of it a hole."""

    def write(path: Path, *_: object) -> None:
        path.write_bytes(beginning)
        os.truncate(path, TERABYTE)

    return write


# Things in the place of a file that no door may read on and on.
NO_FILES: Mapping[str, Change] = {
    "a_directory": lambda path, *_: path.mkdir(),
    "a_link_to_itself": lambda path, *_: path.symlink_to(path.name),
    "a_link_to_a_device": link("/dev/zero"),
    "a_terabyte": hole(),
}
PIPE: Mapping[str, Change] = {"a_pipe": lambda path, *_: os.mkfifo(path)}
# Texts that no program would have written.
NO_JSON: Mapping[str, Change] = {
    "nested_lists": content("[" * DEEP + "]" * DEEP),
    "nested_objects": content('{"a":' * DEEP + "1" + "}" * DEEP),
    "bytes": content(bytes(range(256)) * 100),
    "half_a_surrogate": content('{"schema": 1, "prompt": "\\ud800", "a": "\\udfff"}'),
    "a_number": content("1e999999"),
    "digits": content("9" * 100_000),
}


def as_it_is(path: Path, good: bytes, _: Path) -> None:
    path.write_bytes(good)
