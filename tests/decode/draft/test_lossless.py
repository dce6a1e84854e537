"""Lossless replies are full depth's, whatever drafts."""

import pytest

from d3cli.decode.draft.by_depth import DepthSource
from d3cli.decode.draft.by_model import ModelSource
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.draft.lookup import LookupSource
from d3cli.decode.draft.source import DraftSource
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from tests.decode.draft.fixed import Always, Listed
from tests.decode.replies import greedy, ids
from tests.families import LAYERS, Tiny, case, in_turn, random_ids, tiny, units_of

FULL = DepthSchedule.full(LAYERS)
PROMPT = [*random_ids(9), *random_ids(9), 5, 6, 5, 6]
NEW_TOKENS = 16


def plain_reply(model: Tiny, new_tokens: int = NEW_TOKENS) -> list[int]:
    return ids(greedy(Engine(model.gated), PROMPT, FULL, max_tokens=new_tokens))


def source_of(kind: str, model: Tiny) -> DraftSource:
    if kind == "lookup":
        return LookupSource()
    if kind == "depth":
        return DepthSource(model.gated)
    if kind == "model":
        return ModelSource(model.gated, tiny("llama").gated)
    return Listed(len(PROMPT), [])  # noise


SOURCES = ("lookup", "depth", "model", "noise")


@pytest.mark.parametrize(("name", "kind"), in_turn(lambda _: SOURCES))
def test_greedy_replies_are_those_of_full_depth_whatever_drafts(name: str, kind: str) -> None:
    """Each family verifies right and wrong drafts, and what one of the sources drafts."""
    model, schedule = case(name, units_of(name)[-1])
    expected = plain_reply(model)
    for source in (Listed(len(PROMPT), expected, wrong_every=5), source_of(kind, model)):
        reply = greedy(
            Engine(model.gated), PROMPT, schedule, max_tokens=NEW_TOKENS, drafter=Always(source)
        )
        assert ids(reply) == expected
        assert {token.depth for token in reply.tokens} == {LAYERS}
        assert sum(done.tokens for done in reply.verifications) == NEW_TOKENS - 1
        assert any(done.draft_ids for done in reply.verifications)


def test_a_draft_of_the_reply_itself_is_accepted_whole() -> None:
    model = tiny("llama")
    expected = plain_reply(model)
    reply = greedy(
        Engine(model.gated),
        PROMPT,
        FULL,
        max_tokens=NEW_TOKENS,
        drafter=Always(Listed(len(PROMPT), expected), lengths=(5,)),
    )
    ids(reply)
    assert [done.accepted for done in reply.verifications[:2]] == [5] * 2
    assert reply.stats.lossless is not None
    assert reply.stats.lossless.accepted == reply.stats.lossless.drafted
    drafted = [token.drafted_by for token in reply.tokens[1:7]]
    assert drafted == ["lookup"] * 5 + [None]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_cache_after_a_lossless_reply_is_the_full_models(name: str) -> None:
    model = tiny(name)
    expected = plain_reply(model)
    plain, lossless = Engine(model.gated), Engine(model.gated)
    ids(greedy(plain, PROMPT, FULL, max_tokens=NEW_TOKENS))
    drafter = Always(Listed(len(PROMPT), expected, wrong_every=5))
    ids(greedy(lossless, PROMPT, FULL, max_tokens=NEW_TOKENS, drafter=drafter))
    assert lossless.cache.position == plain.cache.position == lossless.cache.full_length
    for layer in range(LAYERS):
        for ours, theirs in zip(
            lossless.cache.keys_and_values(layer), plain.cache.keys_and_values(layer), strict=True
        ):
            assert (ours - theirs).abs().max() < 1e-5


def test_a_drafter_that_learns_gives_the_same_reply() -> None:
    model = tiny("qwen3")
    expected = plain_reply(model, 60)
    drafter = Drafter.for_model(model.gated, draft_model=tiny("llama").gated)
    for _ in range(2):
        reply = greedy(Engine(model.gated), PROMPT, FULL, max_tokens=60, drafter=drafter)
        assert ids(reply) == expected
