"""Replies that are written together equal those that are written alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from d3cli.base.errors import D3Error, GenerationError
from d3cli.decode import batch
from d3cli.decode.batch import best_size, write_together
from d3cli.decode.reply import Reply
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.prompt_order import Schedule
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel
from tests.decode.replies import STORY, ids
from tests.families import planes, quick_or_slow, random_ids, sublayers, tiny, whole_layers

PROMPTS = [random_ids(length, seed=length) for length in (5, 40, 9, 17, 6, 23, 30)]
LIMITS = (10, 3, 16, 8, 1, 12, 5)
# Llama; a sliding window; learned positions; parallel sublayers; experts; no blocks.
FAMILIES = ("llama", "mistral", "gpt2", "gpt_neox", "mixtral", "opt")


def start(
    model: LoadedModel, schedule: Schedule, sampling: SamplingParams | None = None, **options: Any
) -> list[Reply]:
    """A reply to each of the prompts, with a length and an engine of its own."""
    return [
        Engine(model).stream_ids(
            prompt,
            schedule=schedule,
            sampling=sampling or SamplingParams(),
            max_tokens=limit,
            **options,
        )
        for prompt, limit in zip(PROMPTS, LIMITS, strict=True)
    ]


def write(replies: Sequence[Reply], size: int) -> list[list[int]]:
    """Writes them together; the tokens of each. None fails."""
    for _, chunk in write_together(replies, size):
        assert not isinstance(chunk, D3Error)
    return [[token.token_id for token in reply.tokens] for reply in replies]


@pytest.mark.parametrize("name", quick_or_slow((name,) for name in FAMILIES))
@pytest.mark.parametrize("size", [3, 16])
def test_greedy_replies_are_the_same_at_any_size(name: str, size: int) -> None:
    model = tiny(name).gated
    for schedule in (whole_layers(), model.schedule("off")):
        singles, replies = start(model, schedule), start(model, schedule)
        assert write(replies, size) == [ids(reply) for reply in singles]
        for reply, alone in zip(replies, singles, strict=True):
            assert reply.finish_reason == alone.finish_reason == "length"
            assert [one.depth for one in reply.tokens] == [one.depth for one in alone.tokens]
            assert [one.bytes_read for one in reply.tokens] == [
                one.bytes_read for one in alone.tokens
            ]


def test_rows_at_different_steps_drop_parts_of_layers() -> None:
    model = tiny("llama", nested=True).gated
    for schedule in (sublayers(model), planes(model)):
        expected = [ids(reply) for reply in start(model, schedule)]
        assert write(start(model, schedule), 3) == expected


def test_sampled_replies_are_those_of_the_same_seed_alone() -> None:
    model = tiny("llama").gated
    sampling = SamplingParams(temperature=0.9, top_k=20, repetition_penalty=1.1, seed=3)
    expected = [ids(reply) for reply in start(model, whole_layers(), sampling)]
    assert expected != [ids(reply) for reply in start(model, whole_layers())]
    assert write(start(model, whole_layers(), sampling), 4) == expected


def test_each_prompt_may_have_its_own_order() -> None:
    model = tiny("llama").gated
    schedule = model.schedule(0.9, start=2, core_first=1, core_last=2, units="layer")
    expected = [ids(reply) for reply in start(model, schedule)]
    replies = start(model, schedule)
    assert write(replies, 4) == expected
    orders = {reply.schedule.skip_order for reply in replies}
    assert len(orders) > 1


def test_texts_stops_and_figures_are_those_of_a_reply_alone(builtin: LoadedModel) -> None:
    prompts = [STORY, "Tell me a story about an owl.", "What is 2 + 3?"]

    def new() -> list[Reply]:
        schedule = builtin.schedule("auto")
        return [
            Engine(builtin).stream(prompt, schedule=schedule, max_tokens=25, stop=["fox"])
            for prompt in prompts
        ]

    alone, together = new(), new()
    for reply in alone:
        ids(reply)
    shown = dict.fromkeys(range(3), "")
    for reply, chunk in write_together(together, 3):
        assert not isinstance(chunk, D3Error)
        shown[together.index(reply)] += chunk.text
    for number, (reply, other) in enumerate(zip(together, alone, strict=True)):
        assert shown[number] == reply.text == other.text
        assert reply.pieces == other.pieces
        assert reply.finish_reason == other.finish_reason
        assert reply.stats.byte_ratio == other.stats.byte_ratio
        assert reply.stats.tokens_per_second
    assert {reply.finish_reason for reply in together} >= {"stop"}


def test_an_error_ends_its_own_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").gated
    expected = [ids(reply) for reply in start(model, whole_layers())]
    replies = start(model, whole_layers())
    bad, spoiled_rows = replies[2], []
    real = type(model).states_of_rows

    def spoiled(self: LoadedModel, token_ids: Any, caches: Any, dropped: Any) -> torch.Tensor:
        states = real(self, token_ids, caches, dropped).clone()
        for row, cache in enumerate(caches):
            if cache.position == len(bad.prompt_ids) + 4 and not spoiled_rows:
                spoiled_rows.append(row)
                states[row] = torch.nan
        return states

    monkeypatch.setattr(type(model), "states_of_rows", spoiled)
    errors = [one for one in write_together(replies, 4) if isinstance(one[1], D3Error)]
    assert [reply for reply, _ in errors] == [bad]
    assert isinstance(errors[0][1], GenerationError)
    for reply, tokens in zip(replies, expected, strict=True):
        assert not hasattr(reply, "_writer")  # which holds the KV cache
        if reply is not bad:
            assert [token.token_id for token in reply.tokens] == tokens


def test_prompts_that_cannot_be_read_do_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").gated
    expected = [ids(reply) for reply in start(model, whole_layers())]
    replies = start(model, whole_layers())
    bad, real = replies[:3], Reply.begin

    def begin(reply: Reply) -> tuple[KVCache, torch.Tensor]:
        if reply in bad:
            raise GenerationError("the influence of layer 1 is not finite")
        return real(reply)

    monkeypatch.setattr(Reply, "begin", begin)
    errors = [reply for reply, news in write_together(replies, 3) if isinstance(news, D3Error)]
    assert errors == bad  # a whole batch
    assert not any(hasattr(reply, "_writer") for reply in replies)
    assert [[token.token_id for token in reply.tokens] for reply in replies[3:]] == expected[3:]


def test_rows_share_each_pass_and_who_ends_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full depth, and where rows at different steps drop what their own prompts say."""
    model = tiny("llama").gated
    passes: list[int] = []
    real = type(model).states_of_rows

    def counted(self: LoadedModel, token_ids: Any, caches: Any, dropped: Any) -> torch.Tensor:
        passes.append(len(token_ids))
        return real(self, token_ids, caches, dropped)

    monkeypatch.setattr(type(model), "states_of_rows", counted)
    own = model.schedule(0.9, start=2, core_first=1, core_last=2, units="layer")
    for schedule in (model.schedule("off"), whole_layers(), own):
        passes.clear()
        write(start(model, schedule), 16)
        assert len(passes) == max(LIMITS) - 1  # one pass a step for all
        passes.clear()
        write(start(model, schedule), 4)
        assert sum(passes) == sum(LIMITS) - len(LIMITS)
        assert sum(rows == 4 for rows in passes) > 5


def test_replies_are_made_when_there_is_room() -> None:
    model = tiny("llama").gated
    made: list[Reply] = []

    def one_by_one():
        for reply in start(model, whole_layers()):
            made.append(reply)
            yield reply

    next(iter(write_together(one_by_one(), 3)))
    assert len(made) == 3


def test_a_reply_that_has_ended_keeps_no_cache() -> None:
    model = tiny("llama").gated
    replies = start(model, whole_layers())
    write(replies, 4)
    assert not any(hasattr(reply, "_writer") for reply in replies)


def test_the_best_size_is_the_smallest_with_the_most_tokens_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama").gated
    took = {1: 1.0, 2: 1.1, 4: 1.3, 8: 2.55, 16: 6.0}
    monkeypatch.setattr(batch, "_time_of_pass", lambda _, caches, __: took[len(caches)])
    assert best_size(model, 100) == 4
    assert best_size(model, 2) == 2
    assert best_size(model, 1) == 1
    assert best_size(tiny("opt").gated, 100) == 1


def test_the_sizes_are_timed_on_the_model_itself() -> None:
    assert best_size(tiny("llama").gated, 3) in (1, 2, 3)
