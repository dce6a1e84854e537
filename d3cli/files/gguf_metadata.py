"""The metadata of a GGUF file: keys and values, as read and checked by `gguf_header`.

Lists stay as bytes until they are asked for, since a vocabulary has hundreds of thousands of items.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from d3cli.base.errors import ModelError
from d3cli.base.inert import quoted

DOWNLOAD_AGAIN = "download it again"

Scalar = str | int | float | bool
Value = Scalar | tuple[Scalar, ...]

# The format's numbers of the types of values.
STRING, ARRAY = 8, 9
# Those of a fixed size, as `struct` names them.
FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
U64 = struct.Struct("<Q")


def damaged(path: Path, problem: str, hint: str = DOWNLOAD_AGAIN) -> ModelError:
    """The error for a file that is not as the format wants it."""
    return ModelError(f"the GGUF file {path} is damaged: {problem}", hint)


@dataclass(frozen=True, slots=True)
class GgufList:
    """A list as it stands in the file: the type of its items, their number and their bytes.

    The bytes are complete: each string in them ends within them.
    """

    type: int
    count: int
    data: bytes


class Metadata(Mapping[str, Value]):
    """A file's metadata. Lists become tuples when they are first asked for.

    Raises:
        ModelError: when a list of strings is asked for that is not UTF-8.
    """

    def __init__(self, path: Path, values: dict[str, Value | GgufList]) -> None:
        self._path, self._values = path, values

    def __getitem__(self, key: str) -> Value:
        value = self._values[key]
        if isinstance(value, GgufList):
            value = self._values[key] = self._unpacked(key, value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def length(self, key: str) -> int | None:
        """The length of a list, which is not unpacked for it; None if the key is no list."""
        value = self._values.get(key)
        if isinstance(value, GgufList):
            return value.count
        return len(value) if isinstance(value, tuple) else None

    def _unpacked(self, key: str, value: GgufList) -> tuple[Scalar, ...]:
        if value.type != STRING:
            return struct.unpack(f"<{value.count}{FIXED[value.type]}", value.data)
        try:
            return tuple(_strings(value.data, value.count))
        except UnicodeDecodeError:
            raise damaged(self._path, f"{quoted(key)} is not UTF-8 text") from None


def _strings(data: bytes, count: int) -> Iterator[str]:
    at = 0
    for _ in range(count):
        start = at + U64.size
        at = start + U64.unpack_from(data, at)[0]
        yield data[start:at].decode()
