"""-1 is "no limit", "a random seed" and "all tokens", as in other tools."""

import json
import os
from pathlib import Path

import pytest

from d3cli.base.errors import UsageError
from d3cli.cli.calibrate.options import _pick_seed
from d3cli.cli.chat.settings import ChatSettings, parse_change
from tests.conftest import D3, check

FLAGS = {"max_tokens": "--max-tokens", "seed": "--seed", "top_k": "--top-k"}


def give(place: str, name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sets an option by a flag, its variable or config.toml; returns what to type."""
    if place == "flag":
        return [FLAGS[name], str(value)]
    if place == "variable":
        monkeypatch.setenv(f"D3_{name.upper()}", str(value))
    else:
        (Path(os.environ["D3_HOME"]) / "config.toml").write_text(f"{name} = {value}\n")
    return []


places = pytest.mark.parametrize("place", ["flag", "variable", "config"])


@places
def test_no_limit(d3: D3, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = give(place, "max_tokens", -1, monkeypatch)
    unset = json.loads(d3("generate", "What is 2 + 3?", "--json").out)
    result = d3("generate", "What is 2 + 3?", "--json", *typed)
    assert json.loads(result.out)["text"] == unset["text"], result


@places
def test_a_random_seed(d3: D3, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["generate", "Hi.", "--json", "--temp", "1", "--max-tokens", "2"]
    arguments += give(place, "seed", -1, monkeypatch)
    results = [json.loads(d3(*arguments).out) for _ in range(2)]
    seeds = {result["stats"]["seed"] for result in results}
    assert len(seeds) == 2
    assert min(seeds) >= 0


@places
def test_all_tokens(d3: D3, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["generate", "Hi.", "--json", "--temp", "1", "--seed", "3", "--max-tokens", "9"]
    expected = json.loads(d3(*arguments, "--top-k", "0").out)["text"]
    typed = give(place, "top_k", -1, monkeypatch)
    assert json.loads(d3(*arguments, *typed).out)["text"] == expected


def test_a_flag_of_minus_one_overrides_the_config(d3: D3) -> None:
    (Path(os.environ["D3_HOME"]) / "config.toml").write_text("max_tokens = 2\nseed = 7\n")
    arguments = ("generate", "Tell me a story.", "--json", "--temp", "1")
    limited = json.loads(d3(*arguments).out)
    assert (limited["stats"]["seed"], limited["finish_reason"]) == (7, "length")
    free = json.loads(d3(*arguments, "--max-tokens", "-1", "--seed", "-1").out)
    assert free["stats"]["seed"] != 7
    assert free["stats"]["completion_tokens"] > 2


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--max-tokens", "0", "at least 1, or -1 for no limit"),
        ("--max-tokens", "-2", "at least 1, or -1 for no limit"),
        ("--seed", "-2", "seed is -2"),
        ("--top-k", "-2", "top-k is -2"),
    ],
)
def test_other_negative_numbers_are_refused(d3: D3, flag: str, value: str, allowed: str) -> None:
    check(d3("generate", "Hi.", flag, value), 2, allowed)


def test_the_seed_of_a_calibration(d3: D3) -> None:
    assert _pick_seed(7) == 7
    assert _pick_seed(-1) >= 0
    assert _pick_seed(-1) != _pick_seed(-1)
    check(d3("calibrate", "--seed", "-2"), 2, "-2 is not at least 0, or -1 for a random seed")


def test_in_a_chat() -> None:
    now = ChatSettings(max_tokens=5, sampling={"seed": 3, "top_k": 4})
    assert parse_change("max-tokens", "-1", now) == {"max_tokens": None}
    assert parse_change("seed", "-1", now)["sampling"]["seed"] is None
    assert parse_change("top-k", "-1", now)["sampling"]["top_k"] == 0
    for value in ("0", "-2"):
        with pytest.raises(UsageError, match=f"max-tokens is {value}"):
            parse_change("max-tokens", value, now)
