"""Turns of a conversation, and what an engine refuses."""

import pytest

from d3cli.base.errors import (
    ContextFullError,
    PromptError,
    ScheduleError,
    UsageError,
)
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.decode.replies import STORY, greedy, ids
from tests.families import random_ids, tiny, whole_layers


class TestTurns:
    """After any history, a turn's tokens are those of a fresh engine."""

    SCHEDULE = whole_layers(alpha=0.9, start=1)

    def test_a_second_turn_repairs_and_reuses(self) -> None:
        model = tiny("qwen3-sliding").gated
        engine = Engine(model)
        prompt = random_ids(20)
        first = greedy(engine, prompt, self.SCHEDULE, max_tokens=15)
        follow_up = [*prompt, *ids(first), *random_ids(9, seed=3)]
        second = greedy(engine, follow_up, self.SCHEDULE, max_tokens=12)
        done = list(second.prefill())
        fresh = greedy(Engine(model), follow_up, self.SCHEDULE, max_tokens=12)
        assert ids(second) == ids(fresh)
        assert done == [len(follow_up)]
        assert first.agreement is not None
        assert first.agreement.compared == 13  # 15 tokens, less token 0 and the warm-up
        assert second.agreement is None
        assert second.reused == 21  # the prompt and the warm-up step

    def test_the_second_turn_reads_only_what_the_cache_lacks(self) -> None:
        model = tiny("llama").gated
        engine = Engine(model)
        prompt = random_ids(40)
        reply = ids(greedy(engine, prompt, self.SCHEDULE, max_tokens=10))
        follow_up = [*prompt, *reply, *random_ids(5, seed=3)]
        read: list[int] = []
        hook = model.causal_lm.base_model.register_forward_pre_hook(
            lambda _module, _args, kwargs: (
                read.append(kwargs["input_ids"].shape[1])
                if kwargs.get("input_ids") is not None
                else None
            ),
            with_kwargs=True,
        )
        list(greedy(engine, follow_up, self.SCHEDULE, max_tokens=1).prefill())
        hook.remove()
        assert read[0] == len(follow_up) - 41  # the prompt and one warm-up step are kept

    @pytest.mark.parametrize("cut", [0, 5, 19, 20, 24, 30])
    def test_an_edited_history_is_read_again_from_the_edit(self, cut: int) -> None:
        model = tiny("gemma3").gated
        engine = Engine(model)
        prompt = random_ids(20)
        reply = ids(greedy(engine, prompt, self.SCHEDULE, max_tokens=15))
        edited = [*[*prompt, *reply][:cut], *random_ids(8, seed=cut + 50)]
        second = greedy(engine, edited, self.SCHEDULE, max_tokens=12)
        assert ids(second) == ids(greedy(Engine(model), edited, self.SCHEDULE, max_tokens=12))

    def test_the_same_prompt_again_gives_the_same_reply(self) -> None:
        model = tiny("mistral").gated
        engine = Engine(model)
        prompt = random_ids(30)
        first = ids(greedy(engine, prompt, self.SCHEDULE, max_tokens=10))
        assert ids(greedy(engine, prompt, self.SCHEDULE, max_tokens=10)) == first

    def test_an_interrupted_reply_leaves_the_engine_usable(self) -> None:
        model = tiny("llama").gated
        engine = Engine(model)
        prompt = random_ids(20)
        reply = greedy(engine, prompt, self.SCHEDULE, max_tokens=15)
        for _, _chunk in zip(range(6), reply, strict=False):
            pass
        follow_up = [*prompt, *[token.token_id for token in reply.tokens], 7, 8]
        second = greedy(engine, follow_up, self.SCHEDULE, max_tokens=9)
        assert ids(second) == ids(greedy(Engine(model), follow_up, self.SCHEDULE, max_tokens=9))

    def test_a_conversation_of_messages(self, builtin: LoadedModel) -> None:
        engine = Engine(builtin)
        messages = [{"role": "user", "content": "My dog is called Rex."}]
        first = engine.stream(messages, schedule=builtin.schedule(0.97), max_tokens=30)
        list(first)
        messages += [
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "What is my dog called?"},
        ]
        second = engine.stream(messages, schedule=builtin.schedule(0.97), max_tokens=30)
        fresh = Engine(builtin).stream(messages, schedule=builtin.schedule(0.97), max_tokens=30)
        list(second), list(fresh)
        assert second.text == fresh.text

    def test_rounding_changes_no_choice_at_full_depth_in_float32(self) -> None:
        model = tiny("llama").gated
        engine = Engine(model)
        ids(greedy(engine, random_ids(20), DepthSchedule.full(8), max_tokens=15))
        assert engine.repair().share is None
        assert engine.repair(recheck=True).compared == 14
        assert engine.repair(recheck=True).share == 1

    def test_the_reply_continues_a_prefill_that_was_begun(self) -> None:
        model = tiny("llama").gated
        engine = Engine(model)
        prompt = random_ids(30)
        before = greedy(engine, prompt, self.SCHEDULE, max_tokens=9)
        first = ids(before)
        second = greedy(engine, [*prompt, *first, 7, 8], self.SCHEDULE, max_tokens=9)
        next(second.prefill())
        fresh = greedy(Engine(model), [*prompt, *first, 7, 8], self.SCHEDULE, max_tokens=9)
        assert ids(second) == ids(fresh)
        assert before.agreement is not None
        assert before.agreement.compared == 7

    def test_what_was_read_ahead_wrongly_is_read_again(self) -> None:
        model = tiny("gemma3").gated
        engine = Engine(model)
        prompt = random_ids(20)
        first = greedy(engine, prompt, self.SCHEDULE, max_tokens=30)
        written = ids(first)
        ahead = [*prompt, *written[10:], *random_ids(9, seed=4)]  # a template dropped a part
        list(engine.read_ahead(ahead))
        follow_up = [*ahead, 7, 8]
        second = greedy(engine, follow_up, self.SCHEDULE, max_tokens=9)
        assert ids(second) == ids(greedy(Engine(model), follow_up, self.SCHEDULE, max_tokens=9))
        assert second.reused == len(ahead)
        assert first.agreement is not None
        assert first.agreement.compared == 0  # none of it was read in its own context

    def test_a_second_repair_compares_nothing_more(self) -> None:
        model = tiny("llama").gated
        engine = Engine(model)
        ids(greedy(engine, random_ids(20), self.SCHEDULE, max_tokens=15))
        assert engine.cache.is_ragged
        assert engine.repair().compared == 13
        assert not engine.cache.is_ragged
        assert engine.repair().compared == 13  # each token once

    def test_the_next_prompt_completes_a_repair_left_in_the_middle(self) -> None:
        model = tiny("qwen3-sliding").gated
        engine = Engine(model)
        prompt = random_ids(20)
        first = greedy(engine, prompt, self.SCHEDULE, max_tokens=40)
        follow_up = [*prompt, *ids(first), 7, 8]
        steps = engine.read_ahead(follow_up[:-1], chunk_size=6)
        assert [next(steps), next(steps)] == [27, 33]
        assert first.agreement.compared == 12  # those predicted at positions 21 to 32
        second = greedy(engine, follow_up, self.SCHEDULE, max_tokens=9)
        assert ids(second) == ids(greedy(Engine(model), follow_up, self.SCHEDULE, max_tokens=9))
        assert second.reused == 33
        assert first.agreement.compared == 38


class TestRefusals:
    def test_a_prompt_as_long_as_the_context(self) -> None:
        model = tiny("llama").gated
        for length in (256, 257):
            with pytest.raises(ContextFullError, match=rf"{length} tokens long.*256"):
                greedy(Engine(model), random_ids(length), whole_layers())
        assert ids(greedy(Engine(model), random_ids(255), whole_layers()))

    def test_an_empty_prompt(self, builtin: LoadedModel) -> None:
        with pytest.raises(PromptError):
            Engine(builtin).stream(" ")
        with pytest.raises(PromptError):
            greedy(Engine(builtin), [], DepthSchedule.full(16))

    @pytest.mark.parametrize(
        "prompt",
        [
            [{"role": "user"}],
            [{"content": "Hi."}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": b"Hi."}],
            ["Hi."],
            {"role": "user", "content": "Hi."},
            7,
            b"Hi.",
        ],
    )
    def test_a_prompt_of_another_type(self, builtin: LoadedModel, prompt: object) -> None:
        with pytest.raises(PromptError, match="neither a text nor a list of messages"):
            Engine(builtin).stream(prompt)  # type: ignore[arg-type]

    def test_max_tokens_below_1(self, builtin: LoadedModel) -> None:
        with pytest.raises(UsageError, match="max_tokens is 0") as refused:
            Engine(builtin).stream(STORY, max_tokens=0)
        assert refused.value.field == "max_tokens"

    def test_a_schedule_of_another_model(self, builtin: LoadedModel) -> None:
        with pytest.raises(ScheduleError, match="for 8 layers"):
            Engine(builtin).stream(STORY, schedule=whole_layers())
        with pytest.raises(ScheduleError, match="for 8 layers"):
            score(builtin, [Document([5], [6])], whole_layers())

    def test_a_raw_prompt_of_messages(self, builtin: LoadedModel) -> None:
        with pytest.raises(UsageError):
            Engine(builtin).stream([{"role": "user", "content": "x"}], raw=True)
