"""The answer of a reply, taken out of it while it arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.text.reasoning import AnswerStream, closing_tag, opening_tag, split_reasoning
from tests.text.thinking_tags import ALL_TAGS, NO_TAGS

TEXTS = [
    "<think>\na b\n</think>\n\nYes.\n\nNo.",
    "  <think>x</think>y",
    "<think>never ends\n",
    "<think></think>\n\n",
    "<think>ends in half a tag</thi",
    "<thin",
    "\n\nno <think>reasoning</think>",
    "a</think>\n\nb",
    "",
    *(f"{start}\nHm.\n{end}\n\n{start} is a tag." for start, end in ALL_TAGS),
]


@given(
    st.sampled_from(TEXTS),
    st.sampled_from(["", *(start for start, _ in ALL_TAGS)]),
    st.lists(st.integers(1, 6), max_size=30),
)
def test_it_is_the_same_at_any_cut(text: str, inside: str, cuts: list[int]) -> None:
    stream, shown, rest = AnswerStream(inside), "", text
    for cut in cuts:
        shown += stream.push(rest[:cut])
        rest = rest[cut:]
    shown += stream.push(rest) + stream.flush()
    assert shown == split_reasoning(inside + text)[1]


@pytest.mark.parametrize(("start", "end"), ALL_TAGS)
def test_it_arrives_as_soon_as_it_is_certain(start: str, end: str) -> None:
    stream = AnswerStream()
    assert stream.push(f"{start}Hm.{end}") == ""
    assert stream.push("\n") == stream.push("\n") == ""
    assert stream.push("Yes") == "Yes"
    assert stream.push(".\n") == ".\n"


@pytest.mark.parametrize(("start", "end"), ALL_TAGS)
def test_a_prompt_may_end_with_the_opening_tag(start: str, end: str) -> None:
    assert closing_tag(start) == end
    assert opening_tag(f"<|assistant|>{start}\n") == start
    assert not opening_tag(f"{start}\n{end}\n")


@pytest.mark.parametrize("text", NO_TAGS)
def test_other_texts_in_brackets_open_nothing(text: str) -> None:
    assert not opening_tag(f"<|assistant|>{text}")
    assert split_reasoning(f"{text} Yes.") == ("", f"{text} Yes.")
    assert closing_tag(text) == ""
