"""Replies: text, ends, seeds, figures, interruptions."""

import itertools
import time

import pytest

from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.decode.stats import peak_memory
from d3cli.model.model import LoadedModel
from d3cli.text.stop_strings import StopStrings
from d3cli.text.tokens import Detokenizer
from tests.decode.replies import STORY, greedy, ids
from tests.families import random_ids, tiny, whole_layers


def test_the_builtin_model_answers(builtin: LoadedModel) -> None:
    reply = Engine(builtin).stream(STORY)
    chunks = list(reply)
    assert len(reply.text.split()) > 30
    assert "".join(chunk.text for chunk in chunks) == reply.text
    assert "".join(reply.pieces) == reply.text
    assert chunks[-1].finish_reason == reply.finish_reason == "stop"
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    assert builtin.tokenizer.decode([c.token_id for c in chunks], True) == reply.text


def test_stats_are_those_of_the_decode_steps(builtin: LoadedModel) -> None:
    engine, schedule = Engine(builtin), builtin.schedule(0.99)
    before, memory = time.perf_counter(), peak_memory(builtin.device)
    reply = engine.stream(STORY, schedule=schedule, max_tokens=30)
    list(reply)
    wall = time.perf_counter() - before
    stats = reply.stats
    depths = [schedule.depth(t) for t in range(1, 30)]
    assert stats.completion_tokens == 30
    assert stats.prompt_tokens == len(reply.prompt_ids) > 5
    assert stats.mean_depth == pytest.approx(sum(depths) / 29)
    assert stats.min_depth == depths[-1] < 16
    assert stats.layer_ratio == pytest.approx(16 * 29 / sum(depths))
    assert stats.byte_ratio == schedule.byte_ratio(30, builtin.weight_bytes)
    saved = [builtin.weight_bytes.total - token.bytes_read for token in reply.tokens]
    by_unit = builtin.weight_bytes.saved
    assert saved == [sum(by_unit(schedule.dropped(t))) for t in range(30)]
    assert saved[0] == 0 < saved[-1]
    assert 1 < stats.byte_ratio < stats.layer_ratio
    assert stats.ttft_s is not None
    assert stats.ttft_s + stats.decode_s <= wall
    assert stats.tokens_per_second == pytest.approx(29 / stats.decode_s)
    assert stats.peak_memory_bytes >= memory > 0
    assert stats.seed is None


def test_entropy_is_computed_only_on_request(builtin: LoadedModel) -> None:
    plain = Engine(builtin).stream(STORY, max_tokens=3)
    asked = Engine(builtin).stream(STORY, max_tokens=3, with_entropy=True)
    assert [chunk.token.entropy for chunk in plain] == [None] * 3
    assert all(chunk.token.entropy > 0 for chunk in asked)


def test_one_token_has_no_ratio(builtin: LoadedModel) -> None:
    reply = Engine(builtin).stream(STORY, max_tokens=1)
    list(reply)
    stats = reply.stats
    assert (stats.mean_depth, stats.layer_ratio, stats.tokens_per_second) == (None, None, None)
    assert stats.byte_ratio is None


def test_max_tokens_ends_with_length(builtin: LoadedModel) -> None:
    reply = Engine(builtin).stream(STORY, max_tokens=7)
    assert len(list(reply)) == 7
    assert reply.finish_reason == "length"


def test_a_stop_string_ends_the_reply_before_it(builtin: LoadedModel) -> None:
    whole = Engine(builtin).stream(STORY)
    list(whole)
    stop = whole.text[40:47]
    reply = Engine(builtin).stream(STORY, stop=[stop, "not in any story"])
    list(reply)
    assert reply.text == whole.text[: whole.text.index(stop)]
    assert reply.finish_reason == "stop"


def test_the_context_ends_the_reply() -> None:
    model = tiny("llama").gated
    reply = greedy(Engine(model), random_ids(250), whole_layers(), max_tokens=50)
    assert len(ids(reply)) == 6
    assert reply.finish_reason == "context"


def test_a_sampled_reply_names_its_seed_and_repeats(builtin: LoadedModel) -> None:
    sampled = SamplingParams(temperature=1.2)
    first = Engine(builtin).stream(STORY, sampling=sampled, max_tokens=40)
    list(first)
    seed = first.stats.seed
    assert seed is not None
    again = SamplingParams(temperature=1.2, seed=seed)
    second = Engine(builtin).stream(STORY, sampling=again, max_tokens=40)
    list(second)
    assert second.text == first.text


def test_prefill_counts_up_to_the_prompt() -> None:
    model = tiny("llama").gated
    reply = greedy(Engine(model), random_ids(200), whole_layers(), max_tokens=3)
    assert list(reply.prefill()) == [200]
    assert list(reply.prefill()) == []
    assert len(ids(reply)) == 3


def test_a_reply_left_early_is_interrupted(builtin: LoadedModel) -> None:
    reply = Engine(builtin).stream(STORY)
    for _, _chunk in zip(range(5), reply, strict=False):
        pass
    assert reply.finish_reason == "interrupted"
    assert len(reply.tokens) >= 5
    assert reply.text


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("place", [Detokenizer, StopStrings])
def test_text_and_pieces_match_the_tokens_after_an_interruption_anywhere(
    builtin: LoadedModel, monkeypatch: pytest.MonkeyPatch, place: type, late: bool
) -> None:
    """A signal handler may raise in the middle of adding a token."""
    push, calls = place.push, itertools.count(1)

    def cut(self: object, value: object) -> object:
        if next(calls) == 9:
            if late:
                push(self, value)
            raise KeyboardInterrupt
        return push(self, value)

    monkeypatch.setattr(place, "push", cut)
    reply = Engine(builtin).stream(STORY, stop="never said")
    shown = ""
    with pytest.raises(KeyboardInterrupt):
        for chunk in reply:
            shown += chunk.text
    shown += reply.release()
    ids = [token.token_id for token in reply.tokens]
    expected = builtin.tokenizer.decode(ids, skip_special_tokens=True)
    assert shown == reply.text == "".join(reply.pieces) == expected
    assert len(reply.pieces) == len(ids) == (8 if place is Detokenizer else 9)
    assert reply.release() == ""


def test_held_text_is_released_when_a_reply_is_left_early(builtin: LoadedModel) -> None:
    whole = Engine(builtin).stream(STORY, max_tokens=12)
    list(whole)
    reply = Engine(builtin).stream(STORY, stop=[whole.text + " and never this"])
    for _, _chunk in zip(range(8), reply, strict=False):
        pass
    assert reply.text == ""
    held = reply.release()
    assert held == reply.text == "".join(reply.pieces)
    assert whole.text.startswith(held)
