"""Records and rows of JSON, read as msgspec types: every field is checked.

A type is a dataclass or a `msgspec.Struct`. Its ``__post_init__`` may refuse a value with
ValueError. Text that holds NaN, an infinity or half a surrogate pair is refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from d3cli.base.errors import D3Error, UsageError, Words

T = TypeVar("T")


def decode_json(data: bytes | str, record: type[T]) -> T:
    """One JSON document as a `record`.

    Raises:
        ValueError: it is not JSON, or not such a record. The message is made to follow a colon:
            "expected `int`, got `str`, at `$.schema`".
    """
    with _problems_in_words():
        return msgspec.json.decode(data, type=record)


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
        raise ValueError(words[:1].lower() + words[1:]) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_rows(
    text: str,
    row: type[T],
    *,
    name: str,
    error: type[D3Error] = UsageError,
    hint: Words = "correct the line, or remove it",
) -> Iterator[tuple[int, T]]:
    """The rows of a JSON-lines text with their line numbers, from 1. Blank lines are skipped.

    Args:
        row: the type of a row.
        name: what to call the text in an error: its path.
        error: the class of the error raised.
        hint: what to do about a bad row, such as the form that a row has.

    Raises:
        D3Error: of the class `error`, with the number of the line that is not such a row.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, decode_json(line, row)
            except ValueError as problem:
                raise error(f"{name}, line {number}: {problem}", hint) from problem
