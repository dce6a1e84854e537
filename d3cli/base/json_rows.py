"""Records and rows of JSON, read as msgspec types: every field is checked.

A type is a dataclass or a `msgspec.Struct`. Its ``__post_init__`` may refuse a value with
ValueError. Text that holds NaN, an infinity or half a surrogate pair is refused.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import msgspec

from d3cli.base.errors import D3Error, UsageError, Words
from d3cli.base.structure import filled_lines

T = TypeVar("T")
Prepare = Callable[[Any], Any]

LONGEST = 300  # characters of a problem in words
_SPACE = re.compile(r"\s*")
# The usual names of a list of rows inside an object.
LISTS = ("data", "rows", "train", "examples", "samples", "instances", "records", "items")


def decode_json(data: bytes | str, record: type[T]) -> T:
    """One JSON document as a `record`.

    Raises:
        ValueError: it is not JSON, or not such a record. The message is made to follow a colon:
            "expected `int`, got `str`, at `$.schema`".
    """
    with _problems_in_words():
        return msgspec.json.decode(data, type=record)


def is_json(text: str) -> bool:
    """Whether a text is one JSON document."""
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def convert_json(data: Any, record: type[T]) -> T:
    """A decoded JSON value as a `record`. Unknown fields are ignored.

    Raises:
        ValueError: as for `decode_json`.
    """
    with _problems_in_words():
        return msgspec.convert(data, record)


def refuse_unknown(data: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """Raises ValueError if reading `data` lost anything.

    Args:
        written: what is written for the record that was read from `data`.
    """
    if data != written:
        names = sorted(data.keys() ^ written.keys())
        raise ValueError(f"unknown or missing field {names[0]}" if names else "an unknown field")


@contextmanager
def _problems_in_words() -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # msgspec's errors are, too
        words = str(error).replace(" - at ", ", at ")
        if words[1:2].islower():  # "Expected", but not "JSON"
            words = words[0].lower() + words[1:]
        if len(words) > LONGEST:  # it names a field that has any length
            words = f"{words[: LONGEST - 1]}…"
        raise ValueError(words) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_rows(
    text: str,
    row: type[T],
    *,
    name: str,
    error: type[D3Error] = UsageError,
    hint: Words = "correct the line, or remove it",
    prepare: Prepare | None = None,
) -> Iterator[tuple[int, T]]:
    """The rows of a JSON-lines text with their line numbers, from 1. Blank lines are skipped.

    Args:
        row: the type of a row.
        name: what to call the text in an error: its path.
        error: the class of the error raised.
        hint: what to do about a bad row, such as the form that a row has.
        prepare: changes a decoded row before it is read as a `row`; may raise ValueError.

    Raises:
        D3Error: of the class `error`, with the number of the line that is not such a row.
    """
    for number, line in filled_lines(text):
        try:
            if prepare is None:
                yield number, decode_json(line, row)
            else:
                yield number, convert_json(prepare(decode_json(line, Any)), row)
        except ValueError as problem:
            raise error(f"{name}, line {number}: {problem}", hint) from problem


def read_rows(
    text: str,
    row: type[T],
    *,
    name: str,
    is_row: Callable[[Mapping[str, Any]], bool],
    prepare: Prepare,
    error: type[D3Error] = UsageError,
    hint: Words = "",
) -> Iterator[T]:
    """The rows of a JSON text: lines, an array, an object with an array inside, or one object.

    Objects that follow each other, each on several lines, are rows as well. The other arguments are
    those of `parse_rows`.

    Args:
        is_row: whether an object is a row. In any other object, the rows are searched.

    Raises:
        D3Error: of the class `error`: the text is not JSON, or a row is not such a row; with the
            number of the line or of the row.
    """
    try:
        values = _values(text)
        if values is not None and len(values) == 1:
            values = _find_rows(values[0], is_row)
    except ValueError as problem:
        raise error(f"{name} looks like JSON, but {problem}", hint) from problem
    if values is None:
        lines = parse_rows(text, row, name=name, error=error, hint=hint, prepare=prepare)
        yield from (found for _, found in lines)
        return
    for number, value in enumerate(values, start=1):
        try:
            yield convert_json(prepare(value), row)
        except ValueError as problem:
            raise error(f"{name}, row {number}: {problem}", hint) from problem


def _values(text: str) -> list[Any] | None:
    """The JSON values of a text, one after the other; None if each stands on one line.

    Raises:
        ValueError: it is not JSON.
    """
    first = text.lstrip().partition("\n")[0]
    with _problems_in_words():
        try:
            return [msgspec.json.decode(text)]
        except msgspec.DecodeError as problem:
            if "trailing characters" not in str(problem):
                raise
        with suppress(ValueError):
            msgspec.json.decode(first)
            return None
        values, at, decoder = [], 0, json.JSONDecoder()
        text = text.strip()
        while at < len(text):
            _, end = decoder.raw_decode(text, at)
            values.append(msgspec.json.decode(text[at:end]))  # which refuses more
            space = _SPACE.match(text, end)
            at = space.end() if space else end
        return values


def _find_rows(value: Any, is_row: Callable[[Mapping[str, Any]], bool]) -> list[Any]:
    """The rows of a whole document.

    Raises:
        ValueError: it is an object in which they cannot be found.
    """
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    if is_row(value):
        return [value]
    lists = [key for key, inside in value.items() if isinstance(inside, list)]
    named = [key for key in lists if key.lower() in LISTS] or lists
    if len(named) == 1:
        found: list[Any] = value[named[0]]
        return found
    names = ", ".join(f'"{key[:40]}"' for key in (named or list(value))[:8])
    if named:
        raise ValueError(f"it has several lists of rows: {names}; keep one")
    raise ValueError(f"it has no list of rows; its keys are {names or 'none'}")
