"""KV caches between requests: which one a prompt gets, and which ones memory leaves."""

from typing import Any

import pytest
from starlette.testclient import TestClient
from torch import Tensor

from d3cli.base.errors import ContextFullError, NotEnoughMemoryError
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import KVLayer
from d3cli.model.model import LoadedModel
from d3cli.serve.drafts import Drafts
from d3cli.serve.service import Service
from d3cli.serve.sessions import Sessions
from d3cli.text.chat_template import encode_chat
from tests.decode.draft.fixed import Always
from tests.serve.conftest import CHAT, STORY, Connect, alone, chat, new_service, refusal, user

RESERVE = 20  # further tokens that unlimited replies get room for


@pytest.fixture(autouse=True)
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """No KV cache ever grows beyond the memory, also while it is copied."""
    grow = KVLayer._grow

    def checked(layer: KVLayer, keys: Tensor, values: Tensor, capacity: int) -> None:
        before = KEPT[-1].nbytes if KEPT else 0
        grow(layer, keys, values, capacity)
        assert layer.keys is not None and layer.values is not None
        if KEPT:
            assert before + layer.keys.nbytes + layer.values.nbytes <= KEPT[-1].memory

    monkeypatch.setattr(KVLayer, "_grow", checked)
    KEPT.clear()


KEPT: list[Sessions] = []  # of the test


def write(
    sessions: Sessions,
    prompt: list[int],
    max_tokens: int | None = 2,
    drafter: Always | None = None,
    schedule: DepthSchedule | None = None,
) -> Engine:
    """Writes a reply in the session that the prompt gets; the bound holds at any time."""
    KEPT[:] = [sessions]
    engine = sessions.take(prompt, max_tokens, source=None if drafter is None else "model")
    unlimited = max_tokens is None
    reply = engine.stream_ids(
        prompt,
        schedule=schedule or engine.model.schedule("off"),
        sampling=SamplingParams(),
        max_tokens=sessions.context - len(prompt) if unlimited else max_tokens,
        ends=(),
        drafter=drafter,
        reserve=RESERVE if unlimited else None,
    )
    for chunk in reply:
        if chunk.finish_reason is None:
            sessions.make_way(engine)
    sessions.give_back(engine, keep=True)
    return engine


def position_bytes(model: LoadedModel) -> int:
    return Sessions(model, most=1, memory=1 << 40)._position_bytes


def memory_for(model: LoadedModel, positions: int, caches: int = 1) -> int:
    """Memory for so many positions in KV caches, and for the copy of a layer as one grows.

    Args:
        caches: 2 with a draft model, here the model itself.
    """
    each = position_bytes(model)
    return positions * (caches * each + each // model.num_layers)


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
    memory = memory_for(builtin, 100)
    sessions = Sessions(builtin, most=50, memory=memory)
    for token in range(5, 15):
        write(sessions, [token] * 30, max_tokens=10)
    assert len(sessions) == 2  # each of them has room for 40 tokens


def test_an_unlimited_reply_displaces_others_only_as_it_grows(
    builtin: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d3cli.serve.sessions.DEFAULT_RESERVE", RESERVE)
    sessions = Sessions(builtin, most=50, memory=memory_for(builtin, 140))
    write(sessions, [5] * 30, max_tokens=10)
    write(sessions, [6] * 30, max_tokens=10)
    kept, make_way = [], sessions.make_way

    def noted(engine: Engine) -> None:
        make_way(engine)
        kept.append(len(sessions))

    monkeypatch.setattr(sessions, "make_way", noted)
    schedule = builtin.schedule(0.9, start=2)
    grown = write(sessions, [7] * 30, None, schedule=schedule)
    assert kept == sorted(kept, reverse=True)
    assert (kept[0], kept[-1]) == (3, 1)
    assert grown.cache.position == 139  # the last token is not read
    assert set(kept) == {3, 2, 1}
    write(sessions, [5] * 30, max_tokens=10)  # not in what is left of the grown one's room
    assert len(sessions) == 1


def test_a_draft_models_cache_grows_within_the_memory(
    builtin: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d3cli.serve.sessions.DEFAULT_RESERVE", RESERVE)
    sessions, drafts, drafter = with_drafts(builtin, most=50)
    write(sessions, [5] * 30, 10)
    grown = write(sessions, [6] * 30, None, drafter)
    assert grown.cache.position == 99
    assert drafts.nbytes > 60 * position_bytes(builtin)
    assert len(sessions) == 1


def test_room_that_an_earlier_reply_did_not_use_is_not_taken_later(builtin: LoadedModel) -> None:
    sessions = Sessions(builtin, most=50, memory=memory_for(builtin, 100))
    prompt = [5] * 30
    write(sessions, prompt, max_tokens=10)
    left = sessions.take([*prompt, 6], 60)  # its client goes before it needs more room
    next(
        iter(
            left.stream_ids(
                [*prompt, 6],
                schedule=builtin.schedule("off"),
                sampling=SamplingParams(),
                max_tokens=60,
                ends=(),
            )
        )
    )
    sessions.give_back(left, keep=True)
    write(sessions, [7] * 30, max_tokens=10)
    assert len(sessions) == 2
    assert write(sessions, prompt, max_tokens=15) is left
    assert left.cache.nbytes == 45 * position_bytes(builtin)
    assert len(sessions) == 2


def test_none_are_kept_without_sessions(builtin: LoadedModel) -> None:
    sessions = Sessions(builtin, most=0, memory=1 << 28)
    assert write(sessions, [5] * 20) is not write(sessions, [5] * 20)
    assert (len(sessions), sessions.nbytes) == (0, 0)


def with_drafts(model: LoadedModel, most: int) -> tuple[Sessions, Drafts, Always]:
    """Sessions for 100 tokens of a model that drafts for itself, and what always does."""
    drafts = Drafts(model, model)
    memory = memory_for(model, 100, caches=2)
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
    sessions = Sessions(builtin, most=4, memory=memory_for(builtin, 50))
    assert sessions.context == 50
    with pytest.raises(ContextFullError, match=r"50 tokens.*the server's memory.*holds 50"):
        sessions.take([5] * 50, 1)
    with pytest.raises(ContextFullError):
        sessions.take([5] * 50, None)
    with pytest.raises(NotEnoughMemoryError, match="log-probabilities") as refused:
        sessions.take([5] * 30, None, beside=30)
    assert refused.value.field == ""
    with pytest.raises(NotEnoughMemoryError) as refused:
        sessions.take([5] * 20, 40)
    assert refused.value.field == "max_tokens"
    assert len(sessions) == 0
    write(sessions, [5] * 20, 30)


class TestUnlimitedReplies:
    """A chat without `max_tokens`, on a server with little memory."""

    @pytest.fixture(autouse=True)
    def _reserve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("sessions", "writing"):
            monkeypatch.setattr(f"d3cli.serve.{module}.DEFAULT_RESERVE", RESERVE)

    def serve(self, builtin: LoadedModel, room: int) -> tuple[Service, int]:
        """A server that has memory for the prompt and so many tokens, and the prompt's length."""
        prompt = len(encode_chat(builtin.tokenizer, user(STORY), builtin.text.renderer))
        service = new_service(builtin, kv_bytes=memory_for(builtin, prompt + room))
        KEPT[:] = [service.sessions]
        return service, prompt

    def ask(self, client: TestClient, text: str = STORY, **fields: Any) -> Any:
        return client.post(CHAT, json=chat(text, max_tokens=None, **fields))

    def test_they_end_where_the_memory_does(self, builtin: LoadedModel, connect: Connect) -> None:
        service, prompt = self.serve(builtin, 50)
        client = connect(service)
        for fields in ({}, {"alpha": 0.98}, {"lossless": "lookup"}, {"lossless": "depth"}):
            data = self.ask(client, **fields).json()
            (choice,) = data["choices"]
            assert choice["finish_reason"] == "length"
            assert data["usage"]["total_tokens"] == prompt + 50 == service.sessions.context
            given = {"alpha": fields["alpha"]} if "alpha" in fields else {}
            if "lossless" in fields:
                given = {"alpha": "off"}
            expected = alone(builtin, user(STORY), max_tokens=50, **given)
            assert choice["message"]["content"] == expected

    def test_what_is_too_long_is_refused_for_the_memory(
        self, builtin: LoadedModel, connect: Connect
    ) -> None:
        service, _ = self.serve(builtin, 5)
        client = connect(service)
        long = self.ask(client, STORY + " It is old." * 10)
        error = refusal(long, 400, "messages", "the server's memory for KV caches holds")
        assert error["code"] == "context_length_exceeded"
        assert "the server's kv_memory" in error["message"]
        refused = client.post(CHAT, json=chat(max_tokens=6))
        assert refusal(refused, 400, "max_tokens")["code"] == "not_enough_memory"

    def test_conversations_keep_their_caches_until_it_grows(
        self, builtin: LoadedModel, connect: Connect
    ) -> None:
        service, prompt = self.serve(builtin, 200)
        client = connect(service)
        self.ask(client, "Tell me a story about a dog.", stop="a")
        data = self.ask(client).json()
        assert data["usage"]["completion_tokens"] > RESERVE
        assert prompt + RESERVE < service.sessions.nbytes / position_bytes(builtin)
