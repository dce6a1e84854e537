"""A slice of `scripts/fuzz.py`: parsers refuse by d3's own errors, and shown text is inert."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d3cli.base.errors import UsageError
from d3cli.cli.chat.commands import COMMANDS

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import fuzz

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """Bytes changed, or one value of a JSON document by another."""
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


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_parsers_refuse_by_their_own_errors(name: str) -> None:
    rng = random.Random(name)
    starts = fuzz.seeds(name)
    for _ in range(150):
        fuzz.attempt(fuzz.PARSERS[name], mutated(rng.choice(starts), rng))


@pytest.mark.parametrize("name", ["rows", "prompts", "trace", "conversation", "model_json"])
@given(value=JSON)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_read_or_refused(name: str, value: Any) -> None:
    fuzz.attempt(fuzz.PARSERS[name], json.dumps(value).encode())


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_what_the_fuzzers_start_from_is_valid(name: str) -> None:
    if name not in ("options", "commands"):  # those take more kinds than one
        fuzz.PARSERS[name](fuzz.seeds(name)[0])


def test_random_texts_leave_no_byte_that_d3_did_not_write() -> None:
    assert fuzz.shown_texts(500, seed=1) == 0


def test_the_check_sees_what_is_not_inert() -> None:
    assert not fuzz._is_inert("a\x1b[0m")
    assert not fuzz._is_inert("\u202e")
    assert fuzz._is_inert("a\n\tb ü 日本")


def test_a_command_typed_twice_before_the_prompt_is_back() -> None:
    """It is one text of two lines; `/bye` must not be told not to exist."""
    chat = fuzz._chat()
    chat._commands = COMMANDS
    with pytest.raises(UsageError, match="/bye takes nothing after it"):
        chat._run("/bye\n/bye")
