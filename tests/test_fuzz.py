"""A slice of `scripts/fuzz.py`: parsers raise only d3's own errors, and shown text is inert."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3cli.base import settings as base_settings
from d3cli.base.errors import UsageError
from d3cli.cli.chat.commands import run_command
from d3cli.evals.model_args import EvalSettings

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import fuzz
import fuzz_command_line
import fuzz_parsers

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """The seed with a few bytes inserted, deleted or replaced."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(3):
            case 0:
                data[at:at] = rng.choice(
                    (b"\0", b'"', b"{", b"\xff", b"1e999", b"null", b"-1", b"\n")
                )
            case 1:
                del data[at : at + rng.randint(1, 8)]
            case _:
                data[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(data)


@pytest.mark.parametrize("name", fuzz_parsers.PARSERS)
def test_parsers_raise_only_errors_of_d3(name: str) -> None:
    rng = random.Random(name)
    starts = fuzz_parsers.seeds(name)
    for _ in range(150):
        fuzz_parsers.attempt(fuzz_parsers.PARSERS[name], mutated(rng.choice(starts), rng))


@pytest.mark.parametrize("name", ["rows", "prompts", "trace", "conversation", "model_json"])
@given(value=JSON)
@settings(max_examples=100)
def test_any_json_is_read_or_refused(name: str, value: Any) -> None:
    fuzz_parsers.attempt(fuzz_parsers.PARSERS[name], json.dumps(value).encode())


@pytest.mark.parametrize("name", fuzz_parsers.PARSERS)
def test_seeds_are_valid(name: str) -> None:
    if name not in ("options", "commands", "launch"):  # their seeds are of several kinds
        for seed in fuzz_parsers.seeds(name):
            fuzz_parsers.PARSERS[name](seed)


@pytest.mark.parametrize("number", range(len(fuzz_command_line.SEEDS)))
def test_command_lines_are_read_whole(number: int) -> None:
    """A seed that Typer refuses would be no start for a fuzzer, and it raises nothing."""
    found = fuzz_command_line.command_line(fuzz_command_line.SEEDS[number])
    assert isinstance(found, list)


def test_what_a_config_file_says_reaches_the_settings() -> None:
    path = base_settings.config_file()
    path.write_bytes(fuzz_command_line.CONFIG)
    assert str(fuzz_command_line.read_line(["generate"])).count("lookup")


@pytest.mark.parametrize("rank", ["9" * 5000, "-1", "\u0661", "1_0", ""])
def test_a_rank_that_is_no_number_is_none(rank: str) -> None:
    launched, _ = fuzz_parsers.PARSERS["launch"](f"none\n{rank}\n2\n0\n2".encode())
    assert launched is None


def test_text_that_is_not_utf_8_is_no_value_of_an_evaluation() -> None:
    with pytest.raises(UsageError, match="batch_size is"):
        EvalSettings.read({"pretrained": "demo", "batch_size": "\udce1"})


def test_random_texts_are_shown_inert() -> None:
    assert fuzz.shown_texts(500, seed=1) == 0


def test_the_check_finds_what_is_not_inert() -> None:
    assert not fuzz._is_inert("a\x1b[0m")
    assert not fuzz._is_inert("\u202e")
    assert fuzz._is_inert("a\n\tb ü 日本")


def test_a_command_typed_twice_before_the_prompt_is_back() -> None:
    """It arrives as one text of two lines. `/bye` must not be called unknown."""
    with pytest.raises(UsageError, match="/bye takes no argument"):
        run_command(fuzz_parsers.chat(), "/bye\n/bye")
