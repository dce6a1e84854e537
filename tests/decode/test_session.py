"""Replies, turns and stats, on tiny random models and on the built-in trained one."""

import gc
import itertools
import threading
import time
import weakref

import pytest
import torch

from d3cli.base.errors import (
    ContextFullError,
    GenerationError,
    PromptError,
    ScheduleError,
    UsageError,
)
from d3cli.decode.loop import decode, prefill
from d3cli.decode.reply import Reply
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.decode.stats import peak_memory
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from d3cli.text.stop_strings import StopStrings
from d3cli.text.tokens import Detokenizer
from tests.families import random_ids, tiny, whole_layers

STORY = "Tell me a story about a fox."


@pytest.fixture(scope="module")
def builtin() -> LoadedModel:
    return load_model(dtype="float32", device="cpu")


def ids(reply: Reply) -> list[int]:
    for _ in reply:
        pass
    return [token.token_id for token in reply.tokens]


def greedy(engine: Engine, prompt: list[int], schedule: DepthSchedule, **options: int) -> Reply:
    return engine.stream_ids(prompt, schedule=schedule, sampling=SamplingParams(), **options)


class TestReply:
    def test_the_builtin_model_answers(self, builtin: LoadedModel) -> None:
        reply = Engine(builtin).stream(STORY)
        chunks = list(reply)
        assert len(reply.text.split()) > 30
        assert "".join(chunk.text for chunk in chunks) == reply.text
        assert "".join(reply.pieces) == reply.text
        assert chunks[-1].finish_reason == reply.finish_reason == "stop"
        assert all(chunk.finish_reason is None for chunk in chunks[:-1])
        assert builtin.tokenizer.decode([c.token_id for c in chunks], True) == reply.text

    def test_stats_are_those_of_the_decode_steps(self, builtin: LoadedModel) -> None:
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
        of = builtin.weight_bytes.of
        assert saved == [sum(map(of, schedule.dropped(t))) for t in range(30)]
        assert saved[0] == 0 < saved[-1]
        assert 1 < stats.byte_ratio < stats.layer_ratio
        assert stats.ttft_s is not None
        assert stats.ttft_s + stats.decode_s <= wall
        assert stats.tokens_per_second == pytest.approx(29 / stats.decode_s)
        assert stats.peak_memory_bytes >= memory > 0
        assert stats.seed is None

    def test_entropy_is_computed_only_on_request(self, builtin: LoadedModel) -> None:
        plain = Engine(builtin).stream(STORY, max_tokens=3)
        asked = Engine(builtin).stream(STORY, max_tokens=3, with_entropy=True)
        assert [chunk.token.entropy for chunk in plain] == [None] * 3
        assert all(chunk.token.entropy > 0 for chunk in asked)

    def test_one_token_has_no_ratio(self, builtin: LoadedModel) -> None:
        reply = Engine(builtin).stream(STORY, max_tokens=1)
        list(reply)
        stats = reply.stats
        assert (stats.mean_depth, stats.layer_ratio, stats.tokens_per_second) == (None, None, None)
        assert stats.byte_ratio is None

    def test_max_tokens_ends_with_length(self, builtin: LoadedModel) -> None:
        reply = Engine(builtin).stream(STORY, max_tokens=7)
        assert len(list(reply)) == 7
        assert reply.finish_reason == "length"

    def test_a_stop_string_ends_the_reply_before_it(self, builtin: LoadedModel) -> None:
        whole = Engine(builtin).stream(STORY)
        list(whole)
        stop = whole.text[40:47]
        reply = Engine(builtin).stream(STORY, stop=[stop, "not in any story"])
        list(reply)
        assert reply.text == whole.text[: whole.text.index(stop)]
        assert reply.finish_reason == "stop"

    def test_the_context_ends_the_reply(self) -> None:
        model = tiny("llama").gated
        reply = greedy(Engine(model), random_ids(250), whole_layers(), max_tokens=50)
        assert len(ids(reply)) == 6
        assert reply.finish_reason == "context"

    def test_a_sampled_reply_names_its_seed_and_repeats(self, builtin: LoadedModel) -> None:
        sampled = SamplingParams(temperature=1.2)
        first = Engine(builtin).stream(STORY, sampling=sampled, max_tokens=40)
        list(first)
        seed = first.stats.seed
        assert seed is not None
        again = SamplingParams(temperature=1.2, seed=seed)
        second = Engine(builtin).stream(STORY, sampling=again, max_tokens=40)
        list(second)
        assert second.text == first.text

    def test_prefill_counts_up_to_the_prompt(self) -> None:
        model = tiny("llama").gated
        reply = greedy(Engine(model), random_ids(200), whole_layers(), max_tokens=3)
        assert list(reply.prefill()) == [200]
        assert list(reply.prefill()) == []
        assert len(ids(reply)) == 3

    def test_a_reply_left_early_is_interrupted(self, builtin: LoadedModel) -> None:
        reply = Engine(builtin).stream(STORY)
        for _, _chunk in zip(range(5), reply, strict=False):
            pass
        assert reply.finish_reason == "interrupted"
        assert len(reply.tokens) >= 5
        assert reply.text

    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("place", [Detokenizer, StopStrings])
    def test_text_and_pieces_match_the_tokens_after_an_interruption_anywhere(
        self, builtin: LoadedModel, monkeypatch: pytest.MonkeyPatch, place: type, late: bool
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

    def test_held_text_is_released_when_a_reply_is_left_early(self, builtin: LoadedModel) -> None:
        whole = Engine(builtin).stream(STORY, max_tokens=12)
        list(whole)
        reply = Engine(builtin).stream(STORY, stop=[whole.text + " and never this"])
        for _, _chunk in zip(range(8), reply, strict=False):
            pass
        assert reply.text == ""
        held = reply.release()
        assert held == reply.text == "".join(reply.pieces)
        assert whole.text.startswith(held)

    def test_a_newer_reply_ends_the_one_before(self, builtin: LoadedModel) -> None:
        engine = Engine(builtin)
        old = engine.stream(STORY)
        next(iter(old))
        list(engine.stream(STORY, max_tokens=2))
        with pytest.raises(UsageError, match="newer"):
            list(old)

    def test_a_newer_reply_ends_a_prefill_too(self) -> None:
        model = tiny("llama").gated
        engine = Engine(model)
        old = greedy(engine, random_ids(100), whole_layers(), max_tokens=3)
        reading = old.prefill()
        next(reading)
        new = greedy(engine, random_ids(60, seed=2), whole_layers(), max_tokens=3)
        expected = ids(greedy(Engine(model), random_ids(60, seed=2), whole_layers(), max_tokens=3))
        assert ids(new) == expected
        with pytest.raises(UsageError, match="newer"):
            next(reading)


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

    def test_a_start_beyond_the_context(self, builtin: LoadedModel) -> None:
        with pytest.raises(UsageError, match="start"):
            Engine(builtin).stream(STORY, schedule=builtin.schedule(0.9, start=5000))

    def test_a_schedule_of_another_model(self, builtin: LoadedModel) -> None:
        with pytest.raises(ScheduleError, match="for 8 layers"):
            Engine(builtin).stream(STORY, schedule=whole_layers())
        with pytest.raises(ScheduleError, match="for 8 layers"):
            score(builtin, [Document([5], [6])], whole_layers())

    def test_a_raw_prompt_of_messages(self, builtin: LoadedModel) -> None:
        with pytest.raises(UsageError):
            Engine(builtin).stream([{"role": "user", "content": "x"}], raw=True)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_logits_that_are_not_finite_name_the_step(self, bad: float) -> None:
        model = tiny("llama").gated
        cache = model.new_cache()
        for chunk in prefill(model, cache, [3, 4, 5]):
            logits = model.logits(chunk.hidden[-1]).clone()
        logits[7] = bad
        tokens = decode(
            model,
            cache,
            logits,
            whole_layers(),
            Sampler(SamplingParams()),
            prompt_ids=[3, 4, 5],
            max_tokens=4,
        )
        with pytest.raises(GenerationError, match="step 0"):
            next(tokens)

    def test_masked_logits_of_minus_infinity_are_fine(self) -> None:
        model = tiny("llama").gated
        cache = model.new_cache()
        for chunk in prefill(model, cache, [3, 4, 5]):
            logits = model.logits(chunk.hidden[-1]).clone()
        logits[logits.topk(5).indices] = -torch.inf
        sampler = Sampler(SamplingParams())
        tokens = decode(
            model, cache, logits, whole_layers(), sampler, prompt_ids=[3, 4, 5], max_tokens=1
        )
        assert next(tokens).token_id not in logits.isinf().nonzero().flatten().tolist()


def test_a_repair_ends_a_reply_in_progress(builtin: LoadedModel) -> None:
    engine = Engine(builtin)
    reply = engine.stream(STORY, max_tokens=20)
    for chunk in reply:
        if chunk.token.step == 5:
            break
    engine.repair()
    with pytest.raises(UsageError, match="a newer reply or a repair"):
        next(iter(reply))


@pytest.mark.parametrize("ends", ["by itself", "with its reader"])
def test_a_kv_cache_is_freed_with_its_engine(builtin: LoadedModel, ends: str) -> None:
    """Without the garbage collector, which may run late and let memory grow."""
    gc.disable()
    try:
        engine = Engine(builtin)
        cache = weakref.ref(engine.cache)
        reply = engine.stream(STORY, max_tokens=5)
        for _ in reply:
            if ends == "with its reader":
                iter(reply).close()
                break
        del engine
        assert reply.tokens
        assert cache() is None
    finally:
        gc.enable()


class TestThreads:
    """A second thread is refused before it changes anything."""

    @pytest.mark.parametrize("step", [1, 5])
    def test_a_thread_that_interrupts_a_step_is_refused(self, step: int) -> None:
        model = tiny("llama").gated
        prompts = random_ids(20), random_ids(20, seed=1)
        alone = [ids(greedy(Engine(model), p, whole_layers(), max_tokens=9)) for p in prompts]
        engine, armed, said = Engine(model), [], []

        def other() -> None:
            try:
                ids(greedy(engine, prompts[1], whole_layers(), max_tokens=9))
            except UsageError as error:
                said.append(error.message)

        def come_in(*_: object) -> None:
            if armed:
                armed.clear()
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()

        hook = model.gate.layers[0].register_forward_pre_hook(come_in)
        try:
            reply = greedy(engine, prompts[0], whole_layers(), max_tokens=9)
            for number, _ in enumerate(reply):
                if number == step:
                    armed.append(1)
        finally:
            hook.remove()
        assert said == ["this model is in use by another thread"]
        assert [token.token_id for token in reply.tokens] == alone[0]
        for number in (1, 0):
            again = greedy(engine, prompts[number], whole_layers(), max_tokens=9)
            assert ids(again) == alone[number]

    def test_two_threads_at_random_moments_never_mix_replies(self) -> None:
        model = tiny("llama").gated
        prompts = random_ids(20), random_ids(20, seed=1)
        alone = [ids(greedy(Engine(model), p, whole_layers(), max_tokens=9)) for p in prompts]
        engine, wrong = Engine(model), []

        def talk(number: int) -> None:
            for _ in range(30):
                try:
                    said = ids(greedy(engine, prompts[number], whole_layers(), max_tokens=9))
                except UsageError:
                    continue
                except BaseException as error:
                    wrong.append(repr(error))
                    raise
                if said != alone[number]:
                    wrong.append(said)

        threads = [threading.Thread(target=talk, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        for number in (0, 1):
            again = greedy(engine, prompts[number], whole_layers(), max_tokens=9)
            assert ids(again) == alone[number]
