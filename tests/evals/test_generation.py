"""Generation arguments of tasks as settings of a reply."""

from typing import Any

import pytest

from d3cli.base.errors import UsageError
from d3cli.evals.generation import Generation


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({}, {"temperature": 0}),
        ({"temperature": 0.0, "top_p": 0.9}, {"temperature": 0, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0}),
        ({"temperature": 0.7, "top_k": 5}, {"temperature": 0.7, "top_k": 5}),
        ({"do_sample": True, "min_p": 0.1}, {"temperature": 1.0, "min_p": 0.1}),
        ({"do_sample": True, "temperature": 0.6, "seed": 3}, {"temperature": 0.6, "seed": 3}),
    ],
)
def test_replies_are_greedy_unless_sampling_is_asked_for(
    given: dict[str, Any], sampling: dict[str, Any]
) -> None:
    assert Generation.read(given).sampling == sampling


def test_the_harness_names_of_the_length_count_in_its_order() -> None:
    assert Generation.read({}).max_tokens == 256
    assert Generation.read({"max_new_tokens": 8}).max_tokens == 8
    assert Generation.read({"max_tokens": 9, "max_gen_toks": 7}).max_tokens == 7


def test_stop_strings_are_one_text_or_several() -> None:
    assert Generation.read({"until": "Q:"}).until == ("Q:",)
    assert Generation.read({"until": ["Q:", "", "\n"]}).until == ("Q:", "\n")
    assert Generation.read({"until": None}).until == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, '"num_beams", which d3 does not know'),
        ({"do_sample": True, "temperature": 0}, "do_sample=true at temperature 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 2}, "top_p is 2"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0"),
        ({"max_gen_toks": "8"}, "max_gen_toks is '8'"),
        ({"until": 7}, "until is 7"),
        ({"until": ["a", 7]}, "until is "),
    ],
)
def test_what_cannot_be_done_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Generation.read(given)
    assert message in caught.value.message
