"""Rows and records of JSON are read as checked types."""

from dataclasses import dataclass

import pytest

from d3cli.base.errors import PromptError
from d3cli.base.json_rows import decode_json, parse_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Fox:
    name: str
    age: int = 1

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a fox has no name")


def test_rows_come_with_their_line_numbers() -> None:
    text = '{"name": "Rey"}\n\n{"name": "Tod", "age": 3, "tail": "long"}\n'
    rows = list(parse_rows(text, Fox, name="foxes.jsonl"))
    assert rows == [(1, Fox(name="Rey")), (3, Fox(name="Tod", age=3))]


def test_lines_are_numbered_beyond_millions_of_blank_ones() -> None:
    row = '{"name": "Rey"}\n'
    for blank in ("\n", " \n"):
        text = row + 3_000_000 * blank + row + blank + row
        rows = list(parse_rows(text, Fox, name="foxes.jsonl"))
        assert [number for number, _ in rows] == [1, 3_000_002, 3_000_004]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "input data was truncated"),
        ('{"name": x}', "line 2: JSON is malformed"),
        ("[]", "expected `object`, got `array`"),
        ("{}", "object missing required field `name`"),
        ('{"name": 3}', "expected `str`, got `int`, at `$.name`"),
        ('{"name": ""}', "a fox has no name"),
        ('{"name": "a", "age": NaN}', "invalid"),
        ('{"name": "a", "age": 1e999}', "out of range"),
        ('{"name": "\\ud800"}', "truncated"),
        ('{"name": "\ud800"}', "surrogates not allowed"),
        ('{"x": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_row_is_named(line: str, problem: str) -> None:
    with pytest.raises(PromptError) as caught:
        list(parse_rows(f'{{"name": "Rey"}}\n{line}', Fox, name="f", error=PromptError, hint="no"))
    assert caught.value.message.startswith("f, line 2: ")
    assert problem in caught.value.message
    assert caught.value.hint == "no"
    with pytest.raises(ValueError, match=r"^[^`]"):
        decode_json(line, Fox)
