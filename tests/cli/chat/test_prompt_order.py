"""A chat with a model that nobody has calibrated: the prompt decides the skip order."""

import re
from pathlib import Path

import pytest

from d3cli.decode import transcript
from tests.cli.chat.desk import Desk, NewDesk
from tests.copies import stranger

PROMPT = "Tell me a story about a fox and an owl who share a den in the wood."


@pytest.fixture
def one(desk: NewDesk, tmp_path: Path) -> Desk:
    one = desk()
    one.type(f"/model {stranger(tmp_path / 'other')}")
    return one


def test_depth_says_where_the_order_comes_from_and_what_it_costs(one: Desk) -> None:
    shown = one.type("/alpha 0.9")
    assert "ordered by the prompt; nobody has measured what it costs: d3 calibrate" in shown
    assert "skip order: each prompt decides it" in one.type("/depth")
    one.type(PROMPT)
    shown = one.type("/depth")
    order = re.search(r"skip order of the last reply: ([0-9, ]+)", shown)
    assert order is not None
    assert sorted(map(int, order[1].split(","))) == list(range(4, 12))
    assert "nobody has measured what it costs)" in shown
    one.type("/compare")
    assert re.search(r"prompt; agreement in the last /compare: .* tokens\)", one.type("/alpha"))
    assert "nobody has measured what it costs: d3" in one.type("/alpha 0.8")


def test_a_change_of_alpha_is_shown_once(one: Desk) -> None:
    for alpha in ("0.9", "auto", "0.8"):
        assert one.type(f"/alpha {alpha}").count("depth: ") == 1
    assert "depth: alpha 0.8" in one.type("/alpha")


def test_depth_shows_the_order_of_a_reply_after_a_change(one: Desk) -> None:
    one.type("/alpha 0.9")
    one.type(PROMPT)
    one.type("/alpha auto")
    assert re.search(r"skip order: none skip order of the last reply: [0-9]+, ", one.type("/depth"))


def test_the_saved_reply_holds_the_order_that_ran(one: Desk) -> None:
    one.type("/alpha 0.9")
    one.type(PROMPT)
    schedule = transcript.read(one.path)[-1].schedule
    assert schedule is not None
    assert schedule["source"] == "prompt"
    assert sorted(map(int, schedule["skip_order"])) == list(range(4, 12))


def test_sublayers_may_be_dropped_instead(one: Desk) -> None:
    assert "no effect at full depth" in one.type("/set units sublayer")
    one.type("/alpha 0.9")
    one.type(PROMPT)
    assert ".mlp" in one.type("/depth")
    assert "units is now auto" in one.type("/set units default")
    assert "cannot be" in one.type("/set units neuron")


def test_a_short_prompt_runs_at_full_depth_and_says_so(one: Desk) -> None:
    one.type("/alpha 0.9")
    assert "at least 16 are needed to order its layers" in one.type("Hi.")
