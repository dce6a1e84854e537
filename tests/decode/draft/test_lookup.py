"""Drafts by looking up, against a search from the definition."""

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.decode.draft import lookup
from d3cli.decode.draft.lookup import LONGEST, LookupSource
from d3cli.decode.draft.source import Draft, ReplyContext
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import KVCache

# Few tokens, so that they repeat.
texts = st.lists(st.integers(0, 2), max_size=25)


def context(token_ids: Sequence[int]) -> ReplyContext:
    return ReplyContext(token_ids, KVCache([]), Sampler(SamplingParams()), DepthSchedule.full(1))


def drafted(source: LookupSource, reply: ReplyContext, length: int) -> tuple[int, list[int]] | None:
    """The length of the match and the tokens after it; None for no offer."""
    offer = source.offer(reply)
    if offer is None:
        return None
    draft = source.draft(reply, length)
    assert draft == Draft(draft.token_ids, "lookup", offer.kind)
    return draft.kind, list(draft.token_ids)


def searched(tokens: list[int], length: int) -> tuple[int, list[int]] | None:
    """As `drafted`, by comparing everything with everything."""
    for size in range(min(LONGEST, len(tokens)), 0, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                text = list(tokens)
                for at in range(end, end + length):
                    text.append(text[at])
                return size, text[len(tokens) :]
    return None


@pytest.mark.parametrize(
    ("tokens", "size", "draft"),
    [
        ([1, 2, 3, 7, 2, 3, 8, 1, 2, 3], 3, [7, 2, 3]),  # the longest before the latest
        ([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 3, [8, 1, 2]),  # of equally long ones, the latest
        ([4, 9, 5, 9], 1, [5, 9, 5]),
        ([6, 6], 1, [6, 6, 6]),
        ([1, 2, 1, 2, 1], 3, [2, 1, 2]),  # the match overlaps the end, which repeats itself
    ],
)
def test_the_longest_then_the_latest_match_is_continued(
    tokens: list[int], size: int, draft: list[int]
) -> None:
    source, reply = LookupSource(), context(tokens)
    source.begin(reply)
    assert drafted(source, reply, 3) == (size, draft)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3]])
def test_a_text_without_repetition_offers_nothing(tokens: list[int]) -> None:
    source, reply = LookupSource(), context(tokens)
    source.begin(reply)
    assert source.offer(reply) is None


@given(st.lists(st.tuples(texts, st.integers(0, 25), st.integers(1, 8)), min_size=1, max_size=12))
def test_after_any_growth_crops_and_edits_it_finds_what_a_search_finds(
    turns: list[tuple[list[int], int, int]],
) -> None:
    source, before = LookupSource(), []
    for added, kept, length in turns:
        token_ids = before[:kept]  # a prompt that begins as the last one did
        reply = context(token_ids)
        source.begin(reply)
        for token_id in added:
            token_ids.append(token_id)
            assert drafted(source, reply, length) == searched(token_ids, length)
        before = token_ids


@given(texts, texts, st.integers(0, 25))
def test_an_index_that_is_cropped_equals_a_new_one(
    first: list[int], then: list[int], kept: int
) -> None:
    source, fresh = LookupSource(), LookupSource()
    reply = context([*first[:kept], *then])
    for tokens in (first, first[:kept]):
        source.begin(context(tokens))
    source.begin(reply)
    fresh.begin(reply)
    assert vars(source._index) == vars(fresh._index)


class Counted(list[int]):
    """A list that counts the tokens that are taken from it."""

    taken = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.taken += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self) -> Any:
        self.taken += len(self)
        return super().__iter__()


def work_of_a_step(tokens: int) -> tuple[int, int]:
    """Lines of the module run and tokens looked at, for a step after a text of so many tokens."""
    token_ids = Counted(at % 1000 for at in range(tokens))
    source, reply = LookupSource(), context(token_ids)
    source.begin(reply)
    token_ids.append(tokens % 1000)
    token_ids.taken = lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != lookup.__file__:  # such as a callback of garbage collection
            return None
        lines += event == "line"
        return count

    sys.settrace(count)
    try:
        found = drafted(source, reply, 8)
    finally:
        sys.settrace(None)
    assert found == (LONGEST, [(tokens + at) % 1000 for at in range(1, 9)])
    return lines, token_ids.taken


def test_a_step_does_as_little_in_a_long_text_as_in_a_short_one() -> None:
    short, long = work_of_a_step(1_100), work_of_a_step(100_000)
    assert long == short
    assert 0 < long[0] < 100
    assert long[1] == 1  # the new token
