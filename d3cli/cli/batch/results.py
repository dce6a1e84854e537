"""Where the results of a batch go: a file that a later run completes, or stdout.

While a run lasts, the file has one line for each row that is done, in the order in which they were
done; a complete run puts them in the order of the input. A kill costs the rows that were not done.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import msgspec

from d3cli.base.atomic_files import beginning_of, replace_file_by_parts
from d3cli.base.errors import UsageError
from d3cli.base.file_lock import file_lock
from d3cli.cli.output import Output, WriteError, json_line
from d3cli.cli.output_file import check_writable, is_one_of, target_of, unwritable

ANOTHER = "give another --output-file"
LONGEST_LINE = 64 << 20  # bytes; no reply of any model comes near
BEGINNING = b'{"index": '  # of every result


class Results(Protocol):
    """Receives the result of each row.

    Attributes:
        finished: the rows that an earlier run has finished, by their numbers from 0.
    """

    finished: set[int]

    def add(self, index: int, result: dict[str, Any]) -> None:
        """Takes the result of a row; raises WriteError if it cannot be written."""

    def end(self, rows: int) -> None:
        """Ends the run: all rows are done if there are as many results."""


class ToStdout:
    """Writes results to stdout in the order of the input: a result waits for those before it."""

    def __init__(self, output: Output) -> None:
        self.finished: set[int] = set()
        self._output = output
        self._waiting: dict[int, dict[str, Any]] = {}
        self._next = 0

    def add(self, index: int, result: dict[str, Any]) -> None:
        """As `Results.add`."""
        self._waiting[index] = result
        while self._next in self._waiting:
            self._output.json(self._waiting.pop(self._next))
            self._next += 1

    def end(self, rows: int) -> None:  # noqa: ARG002 - a file needs it
        """As `Results.end`: also writes what waits for a row that was not done."""
        for index in sorted(self._waiting):
            self._output.json(self._waiting.pop(index))


class _Line(msgspec.Struct):
    """What a line of the file says of itself."""

    index: int
    row_hash: str
    settings_hash: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a line of the file is, in bytes; and whether its row must be run again."""

    start: int
    length: int
    failed: bool


class ToFile:
    """Writes results to a file, and continues one that an earlier run has begun.

    Args:
        path: the file; it need not exist.
        row_hashes: of all rows of the input.
        settings_hash: of everything else that decides what the results are.

    Raises:
        UsageError: the file holds something else, or results of other rows or settings.
        WriteError: it cannot be read or written.
    """

    def __init__(self, path: Path, row_hashes: Sequence[str], settings_hash: str) -> None:
        self._path, self._row_hashes, self._settings_hash = path, row_hashes, settings_hash
        self._places: dict[int, _Place] = {}
        self._end = 0
        with self._told():
            if path.exists():
                self._read()
            self._file = open(path, "ab", buffering=0, opener=_private)  # noqa: SIM115 - until `end`
            self._file.truncate(self._end)  # half a line of a run that was killed
        self.finished = {index for index, place in self._places.items() if not place.failed}

    def add(self, index: int, result: dict[str, Any]) -> None:
        """As `Results.add`."""
        hashes = {"row_hash": self._row_hashes[index], "settings_hash": self._settings_hash}
        line = json_line(result | hashes).encode()
        with self._told():
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(self._end)
                raise
        self._note(index, len(line), failed="error" in result)

    def end(self, rows: int) -> None:
        """As `Results.end`: puts the lines in order if there is one for each row."""
        with self._told(), suppress(ValueError):
            self._file.close()
            starts = [self._places[index].start for index in sorted(self._places)]
            in_order = starts == sorted(starts) and self._end == sum(
                place.length for place in self._places.values()
            )
            if len(self._places) == rows and not in_order:
                replace_file_by_parts(self._path, self._lines())

    def _lines(self) -> Iterator[bytes]:
        """The lines in the order of the input."""
        with self._path.open("rb") as file:
            for index in sorted(self._places):
                file.seek(self._places[index].start)
                yield file.read(self._places[index].length)

    def _note(self, index: int, length: int, *, failed: bool) -> None:
        if index not in self._places or self._places[index].failed:
            self._places[index] = _Place(self._end, length, failed)
        self._end += length

    def _read(self) -> None:
        """Reads what an earlier run has written."""
        for found, length in _results_in(self._path):
            if found.settings_hash != self._settings_hash:
                raise UsageError(
                    f"{self._path} holds results of another model or of other options",
                    f"run with the same ones to complete it, or {ANOTHER}",
                )
            _check_row(self._path, found, self._row_hashes)
            self._note(found.index, length, failed=found.error is not None)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns errors of the system into one that names the file."""
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"{self._path} cannot be written: {error.strerror or error}",
                f"what is finished is kept: run the same command again, or {ANOTHER}",
            ) from error


def _results_in(path: Path) -> Iterator[tuple[_Line, int]]:
    """The results that a file holds, and their lengths in bytes.

    Raises:
        UsageError: it holds something else.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(LONGEST_LINE)
            if not line or _is_cut_off(line):
                return
            try:
                found = msgspec.json.decode(line, type=_Line)
            except ValueError as error:
                raise UsageError(
                    f"{path}, line {number}, is not a result of d3 generate --input",
                    f"d3 did not change the file: {ANOTHER}",
                ) from error
            yield found, len(line)


def _check_row(path: Path, found: _Line, row_hashes: Sequence[str]) -> None:
    if not 0 <= found.index < len(row_hashes) or found.row_hash != row_hashes[found.index]:
        raise UsageError(
            f"row {found.index + 1} of the input has changed since {path} was begun",
            f"take the change back to complete it, or {ANOTHER}",
        )


def _is_cut_off(line: bytes) -> bool:
    """Whether a line is the beginning of a result: its run was killed while it wrote it."""
    return not line.endswith(b"\n") and line[: len(BEGINNING)] == BEGINNING[: len(line)]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def choose_target(
    path: Path | None, inputs: Sequence[Path | None], row_hashes: Sequence[str]
) -> Path | None:
    """The file that the results go to, with links followed; None for stdout.

    Checks all that can be known of it before a model is loaded.

    Args:
        inputs: files that are read, which it must not be.
        row_hashes: of all rows of the input.

    Raises:
        UsageError: it is one of the inputs, no regular file that can be written, in use, or holds
            anything but results of these rows.
        WriteError: the disk is full or broken.
    """
    if path is None or path == Path("-"):
        return None
    try:
        given = path.expanduser()
        if given.exists() and not given.is_file():  # a pipe of /dev/stdout resolves to no path
            what = "a directory" if given.is_dir() else "not a regular file"
            raise UsageError(f"{path} is {what}", "give a file, or - for stdout")
        target, is_there = target_of(path, ANOTHER)
        if is_one_of(target, inputs):
            raise UsageError(f"{path} is an input, so results cannot go there", ANOTHER)
        check_writable(path, target, ANOTHER)
        with in_use(target):
            for found, _ in _results_in(target) if is_there else ():
                _check_row(target, found, row_hashes)
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a NUL in the name
        raise unwritable(path, error, ANOTHER) from error
    return target


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Locks a file of results against other processes inside this context.

    Raises:
        UsageError: another d3 is writing it.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # the name may be too long
    lock = path.with_name(f".{beginning_of(path)}.{digest}.lock")
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(lock, patience=0))
            held.callback(_remove, lock)
        except TimeoutError:
            raise UsageError(f"another d3 is writing {path}", "wait for it, or stop it") from None
        except OSError:  # a file system without locks; writing the results reports the rest
            pass
        yield


def _remove(path: Path) -> None:
    with suppress(OSError):  # Windows cannot remove an open file
        path.unlink(missing_ok=True)
