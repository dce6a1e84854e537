"""Reads the header of one GGUF file: its metadata and the table of its tensors.

A stranger may have written the file, so everything in it is checked before it is used: counts,
lengths, types, names, and where each tensor lies. Nothing is allocated before its size has been
compared with the file's. Reads no weights, and knows nothing of models or of other files.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from d3cli.base.errors import ModelError
from d3cli.base.inert import quoted
from d3cli.base.settings import GGUF_MAGIC
from d3cli.files.gguf_metadata import (
    ARRAY,
    DOWNLOAD_AGAIN,
    FIXED,
    STRING,
    U64,
    GgufList,
    Metadata,
    Value,
    damaged,
)
from d3cli.files.gguf_types import NOT_READABLE, READABLE, RETIRED, GgufTensor, GgufType
from d3cli.files.json_files import DO_NOT_USE, unreadable

VERSIONS = (2, 3)  # they differ only in version 3 allowing big-endian files

# Several times what published models have.
LARGEST_HEADER = 128 << 20  # bytes
MOST_KEYS, MOST_TENSORS, MOST_STRINGS = 10_000, 200_000, 4_000_000
LONGEST_KEY, LONGEST_NAME = 256, 256  # bytes
LONGEST_STRING, LONGEST_ITEM = 16 << 20, 64 << 10  # bytes; of a value, and of a string in a list
LARGEST_ALIGNMENT, DEFAULT_ALIGNMENT = 1 << 16, 32
MOST_DIMENSIONS = 4

CONVERT_AGAIN = "get a newer conversion of the model"

_U32 = struct.Struct("<I")
_TENSOR_END = struct.Struct("<IQ")  # a tensor's type and offset
_SMALLEST_KEY, _SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 12  # bytes in the header


@dataclass(frozen=True, slots=True)
class Header:
    """What one GGUF file says about itself."""

    metadata: Metadata
    tensors: tuple[GgufTensor, ...]


def read_header(path: Path) -> Header:
    """Reads and checks the header of one file.

    Raises:
        ModelError: the file is no GGUF file, damaged, cut short, or beyond a bound.
    """
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{path} is not a regular file", DO_NOT_USE)
            if status.st_size < len(GGUF_MAGIC) or file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
                raise ModelError(f"{path} is not a GGUF file", "check the path")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data).header()
    except OSError as error:
        raise unreadable(path, error) from error


class _Parser:
    """Reads a file from its beginning; every read is compared with what is left of it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data = path, data
        self._end = min(len(data), LARGEST_HEADER)
        self._at = len(GGUF_MAGIC)
        self._strings_left = MOST_STRINGS

    def header(self) -> Header:
        self._check_version(self._number(_U32))
        tensors, keys = self._number(U64), self._number(U64)
        self._check_count("tensors", tensors, MOST_TENSORS, _SMALLEST_TENSOR)
        self._check_count("keys", keys, MOST_KEYS, _SMALLEST_KEY)
        values: dict[str, Value | GgufList] = {}
        for _ in range(keys):
            key = self._name("a key", LONGEST_KEY)
            if key in values:
                self._refuse(f"it has the key {quoted(key)} twice")
            values[key] = self._value(key, self._number(_U32))
        metadata = Metadata(self._path, values)
        rows = [self._tensor_row() for _ in range(tensors)]
        return Header(metadata, self._placed(rows, self._alignment(metadata)))

    def _check_version(self, version: int) -> None:
        if version and not version & 0xFFFF:
            raise ModelError(
                f"the GGUF file {self._path} is big-endian, which d3 cannot read",
                "get a little-endian conversion of the model",
            )
        if version == 1:
            raise ModelError(
                f"the GGUF file {self._path} has the old version 1 of the format", CONVERT_AGAIN
            )
        if version not in VERSIONS:
            raise ModelError(
                f"the GGUF file {self._path} has version {version} of the format; d3 reads "
                f"versions {VERSIONS[0]} and {VERSIONS[1]}",
                "it may need a newer d3, or be damaged",
            )

    def _check_count(self, what: str, count: int, most: int, smallest: int) -> None:
        """Refuses more items than the limit, or than the rest of the file can hold."""
        if count > most:
            raise ModelError(
                f"the GGUF file {self._path} claims to have {count:,} {what}; the limit is "
                f"{most:,}",
                DO_NOT_USE,
            )
        self._need(count * smallest)

    def _need(self, length: int) -> None:
        """Refuses to read beyond the end of the header."""
        if length <= self._end - self._at:
            return
        if self._end < len(self._data):
            raise ModelError(
                f"the header of the GGUF file {self._path} has more than {LARGEST_HEADER >> 20} "
                "MiB",
                DO_NOT_USE,
            )
        raise ModelError(
            f"the GGUF file {self._path} ends within its header: it is cut short or damaged",
            DOWNLOAD_AGAIN,
        )

    def _refuse(self, problem: str, hint: str = DOWNLOAD_AGAIN) -> NoReturn:
        raise damaged(self._path, problem, hint)

    def _number(self, form: struct.Struct) -> int:
        self._need(form.size)
        (value,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return int(value)

    def _bytes(self, length: int) -> bytes:
        self._need(length)
        start, self._at = self._at, self._at + length
        return self._data[start : self._at]

    def _text(self, what: str, longest: int) -> str:
        length = self._number(U64)
        if length > longest:
            self._refuse(f"{what} claims to have {length:,} bytes", DO_NOT_USE)
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError:
            self._refuse(f"{what} is not UTF-8 text")

    def _name(self, what: str, longest: int) -> str:
        name = self._text(what, longest)
        if not name:
            self._refuse(f"{what} is empty")
        return name

    def _value(self, key: str, kind: int) -> Value | GgufList:
        if kind == STRING:
            return self._text(quoted(key), LONGEST_STRING)
        if kind == ARRAY:
            return self._list(key, self._number(_U32), self._number(U64))
        if kind not in FIXED:
            self._refuse(f"{quoted(key)} has a value of the unknown type {kind}")
        (value,) = struct.unpack(f"<{FIXED[kind]}", self._bytes(struct.calcsize(FIXED[kind])))
        return value  # type: ignore[no-any-return]

    def _list(self, key: str, kind: int, count: int) -> GgufList:
        if kind == ARRAY:
            raise ModelError(
                f"the GGUF file {self._path} has a list of lists, {quoted(key)}, which no model "
                "needs",
                DO_NOT_USE,
            )
        if kind == STRING:
            return GgufList(kind, count, self._strings(key, count))
        if kind not in FIXED:
            self._refuse(f"{quoted(key)} is a list of the unknown type {kind}")
        size = struct.calcsize(f"<{FIXED[kind]}")
        if count > (self._end - self._at) // size:
            self._need(count * size)
        return GgufList(kind, count, self._bytes(count * size))

    def _strings(self, key: str, count: int) -> bytes:
        """The bytes of a list of strings. Each string's length is checked."""
        if count > self._strings_left:
            raise ModelError(
                f"the GGUF file {self._path} claims to have {count:,} strings in {quoted(key)}",
                DO_NOT_USE,
            )
        self._strings_left -= count
        self._need(8 * count)
        start = at = self._at
        data, last, unpack_from = self._data, self._end - 8, U64.unpack_from
        for _ in range(count):
            if at > last:
                self._at = self._end
                self._need(1)
            (length,) = unpack_from(data, at)
            if length > LONGEST_ITEM:
                self._refuse(f"a string in {quoted(key)} claims to have {length:,} bytes")
            at += 8 + length
        self._need(at - start)
        self._at = at
        return data[start:at]

    def _alignment(self, metadata: Metadata) -> int:
        """The alignment of the tensors' data, in bytes."""
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(value) is not int or not 8 <= value <= LARGEST_ALIGNMENT or value & (value - 1):
            self._refuse(f"its alignment is {str(value)[:40]}, not a power of two")
        return value

    def _tensor_row(self) -> tuple[str, GgufType, tuple[int, ...], int]:
        """A row of the table: name, type, shape in torch's order, offset in the data."""
        name = self._name("the name of a tensor", LONGEST_NAME)
        dimensions = self._number(_U32)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            self._refuse(f"the tensor {quoted(name)} has {dimensions:,} dimensions")
        sizes = struct.unpack(f"<{dimensions}Q", self._bytes(8 * dimensions))
        if 0 in sizes:
            self._refuse(f"the tensor {quoted(name)} is empty")
        number, offset = _TENSOR_END.unpack(self._bytes(_TENSOR_END.size))
        kind = self._type(name, number)
        if sizes[0] % kind.block_values:
            self._refuse(
                f"the rows of the tensor {quoted(name)} have {sizes[0]:,} values, which is not a "
                f"multiple of the block of {kind.name}, {kind.block_values}"
            )
        return name, kind, sizes[::-1], offset

    def _type(self, name: str, number: int) -> GgufType:
        if number in READABLE:
            return READABLE[number]
        where = f"the GGUF file {self._path} stores the tensor {quoted(name)}"
        if number in RETIRED:
            raise ModelError(
                f"{where} as {RETIRED[number]}, a type that llama.cpp has removed", CONVERT_AGAIN
            )
        if number in NOT_READABLE:
            raise ModelError(
                f"{where} as {NOT_READABLE[number]}, which d3 cannot unpack",
                "get the same model in another quantization, such as Q4_K_M or Q8_0",
            )
        raise ModelError(
            f"{where} with type {number}, which d3 does not know",
            "it may need a newer d3; or get the model in another quantization, such as Q4_K_M",
        )

    def _placed(
        self, rows: list[tuple[str, GgufType, tuple[int, ...], int]], alignment: int
    ) -> tuple[GgufTensor, ...]:
        """The tensors with their places in the file. They must not overlap or leave the file."""
        data = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in rows:
            if name in tensors:
                self._refuse(f"it has the tensor {quoted(name)} twice")
            if offset % alignment:
                self._refuse(f"the tensor {quoted(name)} is not aligned to {alignment} bytes")
            values = 1
            for size in shape:
                values *= size
            nbytes = values // kind.block_values * kind.block_bytes
            tensors[name] = GgufTensor(name, kind, shape, self._path, data + offset, nbytes)
        end, before = data, ""
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                self._refuse(f"the tensors {quoted(before)} and {quoted(tensor.name)} overlap")
            end, before = tensor.offset + tensor.nbytes, tensor.name
        if tensors and end > len(self._data):
            raise ModelError(
                f"the GGUF file {self._path} is cut short: it has {len(self._data):,} bytes, but "
                f"its tensors end at byte {end:,}",
                DOWNLOAD_AGAIN,
            )
        return tuple(tensors.values())
