"""KV caches between requests: which one a prompt gets, and which ones memory leaves."""

import pytest

from d3cli.base.errors import ContextFullError, NotEnoughMemoryError
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.model.model import LoadedModel
from d3cli.serve.drafts import Drafts
from d3cli.serve.sessions import Sessions
from tests.decode.draft.fixed import Always


def write(
    sessions: Sessions, prompt: list[int], max_tokens: int = 2, drafter: Always | None = None
) -> Engine:
    """Writes a reply in the session that the prompt gets."""
    engine = sessions.take(prompt, max_tokens, source=None if drafter is None else "model")
    reply = engine.stream_ids(
        prompt,
        schedule=engine.model.schedule("off"),
        sampling=SamplingParams(),
        max_tokens=max_tokens,
        ends=(),
        drafter=drafter,
    )
    for _ in reply:
        sessions.settle(engine)
        assert sessions.nbytes <= sessions.memory
    sessions.give_back(engine, keep=True)
    return engine


def position_bytes(model: LoadedModel) -> int:
    return Sessions(model, most=1, memory=1 << 40)._position_bytes


def test_a_prompt_gets_the_longest_beginning(builtin: LoadedModel) -> None:
    sessions = Sessions(builtin, most=4, memory=1 << 28)
    first, second = write(sessions, [5] * 20), write(sessions, [6] * 20)
    assert first is not second
    assert write(sessions, [5] * 20 + [7] * 10) is first
    assert write(sessions, [6] * 20 + [7] * 10) is second
    assert len(sessions) == 2


def test_a_conversation_that_shares_little_is_another_one(builtin: LoadedModel) -> None:
    sessions = Sessions(builtin, most=4, memory=1 << 28)
    long = write(sessions, [5] * 60)
    assert write(sessions, [5] * 10 + [6] * 10) is not long
    assert write(sessions, [5] * 60 + [8]) is long


def test_the_least_recently_used_goes_first(builtin: LoadedModel) -> None:
    sessions = Sessions(builtin, most=2, memory=1 << 28)
    first, second = write(sessions, [5] * 20), write(sessions, [6] * 20)
    assert write(sessions, [5] * 20) is first  # used again
    third = write(sessions, [7] * 20)
    assert len(sessions) == 2
    assert second.cache.nbytes == 0
    assert write(sessions, [5] * 20) is first
    assert write(sessions, [7] * 20) is third


def test_memory_bounds_all_of_them_together(builtin: LoadedModel) -> None:
    memory = 100 * position_bytes(builtin)
    sessions = Sessions(builtin, most=50, memory=memory)
    for token in range(5, 15):
        write(sessions, [token] * 30, max_tokens=10)
        assert sessions.nbytes <= memory
    assert len(sessions) == 2  # each of them has room for 40 tokens


def test_a_cache_that_grows_displaces_others(builtin: LoadedModel) -> None:
    sessions = Sessions(builtin, most=50, memory=100 * position_bytes(builtin))
    write(sessions, [5] * 30, max_tokens=10)
    write(sessions, [6] * 30, max_tokens=10)
    grown = sessions.take([6] * 30, 10)
    grown.cache.reserve(90)
    list(grown.read_ahead([6] * 80))
    sessions.settle(grown)
    assert len(sessions) == 1


def test_none_are_kept_without_sessions(builtin: LoadedModel) -> None:
    sessions = Sessions(builtin, most=0, memory=1 << 28)
    assert write(sessions, [5] * 20) is not write(sessions, [5] * 20)
    assert (len(sessions), sessions.nbytes) == (0, 0)


def with_drafts(model: LoadedModel, most: int) -> tuple[Sessions, Drafts, Always]:
    """Sessions for 100 tokens of a model that drafts for itself, and what always does."""
    drafts = Drafts(model, model)
    memory = 200 * position_bytes(model)
    source = drafts._by_model
    assert source is not None
    return Sessions(model, most=most, memory=memory, drafts=drafts), drafts, Always(source)


def test_a_draft_models_cache_counts(builtin: LoadedModel) -> None:
    sessions, drafts, drafter = with_drafts(builtin, most=50)
    assert sessions.context == 100
    each = position_bytes(builtin)
    write(sessions, [5] * 30, 10)
    write(sessions, [6] * 30, 10)
    write(sessions, [7] * 30, 10)
    write(sessions, [8] * 30, 10)
    assert len(sessions) == 4
    write(sessions, [9] * 30, 10, drafter)
    assert drafts.nbytes == 40 * each
    assert sessions.nbytes == 200 * each
    assert len(sessions) == 4


def test_a_draft_models_cache_goes_before_a_conversation(builtin: LoadedModel) -> None:
    sessions, drafts, drafter = with_drafts(builtin, most=50)
    write(sessions, [5] * 30, 10, drafter)
    for token in (6, 7, 8):
        write(sessions, [token] * 30, 10)
    assert drafts.nbytes > 0
    write(sessions, [9] * 30, 10)
    assert drafts.nbytes == 0
    assert len(sessions) == 5


def test_without_sessions_a_draft_model_keeps_nothing(builtin: LoadedModel) -> None:
    sessions, _, drafter = with_drafts(builtin, most=0)
    write(sessions, [5] * 30, 10, drafter)
    assert sessions.nbytes == 0


def test_what_cannot_fit_is_refused(builtin: LoadedModel) -> None:
    sessions = Sessions(builtin, most=4, memory=50 * position_bytes(builtin))
    assert sessions.context == 50
    with pytest.raises(ContextFullError, match="50 tokens"):
        sessions.take([5] * 50, 1)
    with pytest.raises(NotEnoughMemoryError) as refused:
        sessions.take([5] * 20, 40)
    assert refused.value.field == "max_tokens"
    assert len(sessions) == 0
    write(sessions, [5] * 20, 30)
