"""A profiled run: its measurements equal those of a slow, obvious computation."""

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from d3cli.base.errors import UsageError
from d3cli.decode.loop import decode_step
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.choice import Source
from d3cli.depth.schedule import DepthSchedule
from d3cli.profile.profiler import Profiler, nested_family
from d3cli.profile.record import active_layers, clock_trace
from d3cli.profile.summary import summarize
from d3cli.profile.trace_file import to_json
from d3cli.scoring.documents import Document
from d3cli.scoring.needed_depth import constant_depth_choices, needed_depths, saturation_layers
from d3cli.scoring.one_pass import Scorer
from d3cli.scoring.step_times import PartTimes, StepTimes, fill_cache, spread_steps
from tests.families import tiny
from tests.traces import STORY, SUM, builtin, made_trace, profile, prompt, whole_trace


@cache
def first_document() -> Document:
    """The first reply of `whole_trace`, generated again."""
    trace = whole_trace()
    reply = Engine(builtin()).stream(
        trace.replies[0].prompt, schedule=trace.depth_schedule, max_tokens=40
    )
    list(reply)
    return Document(reply.prompt_ids, [token.token_id for token in reply.tokens])


class TestRun:
    def test_a_trace_has_the_figures_of_the_engine(self) -> None:
        trace = whole_trace()
        for number, text in enumerate((STORY, SUM)):
            reply = Engine(builtin()).stream(text, schedule=trace.depth_schedule, max_tokens=40)
            list(reply)
            one, stats = trace.replies[number], reply.stats
            assert [token.token_id for token in one.tokens] == [t.token_id for t in reply.tokens]
            assert "".join(token.text for token in one.tokens) == reply.text
            found = summarize(trace, [one])
            assert found.mean_depth == pytest.approx(stats.mean_depth)
            assert found.min_depth == stats.min_depth
            assert found.layer_ratio == pytest.approx(stats.layer_ratio)
            assert found.byte_ratio == pytest.approx(stats.byte_ratio)
            assert found.byte_ratio_net == pytest.approx(
                trace.depth_schedule.byte_ratio(
                    len(reply.tokens), builtin().weight_bytes, net_of_repair=True
                )
            )
            assert found.prompt_tokens == stats.prompt_tokens
            assert (one.finish_reason, found.tokens) == (reply.finish_reason, len(reply.tokens))
            (repeat,) = one.repeats
            times = [token.ms for token in one.tokens]
            assert times[0] is None
            assert sum(times[1:]) == pytest.approx(1000 * repeat.decode_s)
            for token, decoded in zip(one.tokens, reply.tokens, strict=True):
                assert token.depth == decoded.depth
                assert token.logprob == pytest.approx(decoded.logprob, abs=1e-5)

    def test_totals_are_those_of_all_replies(self) -> None:
        trace = whole_trace()
        total = summarize(trace, trace.replies)
        each = [summarize(trace, [reply]) for reply in trace.replies]
        assert total.replies == 2
        for name in ("tokens", "prompt_tokens", "compared", "agreed"):
            assert getattr(total, name) == sum(getattr(one, name) for one in each)
        steps = [one.tokens - 1 for one in each]
        depth = sum(n * one.mean_depth for n, one in zip(steps, each, strict=True)) / sum(steps)
        assert total.mean_depth == pytest.approx(depth)
        full = builtin().weight_bytes.total
        read = sum(n * full / one.byte_ratio for n, one in zip(steps, each, strict=True))
        assert total.byte_ratio == pytest.approx(sum(steps) * full / read)
        assert total.decode_s == pytest.approx(sum(one.decode_s for one in each))

    def test_entropy_is_that_of_the_raw_distribution(self) -> None:
        trace = whole_trace()
        document = first_document()
        states = Scorer(builtin(), [document]).states(trace.depth_schedule)
        expected = torch.distributions.Categorical(logits=builtin().logits(states)).entropy()
        found = [token.entropy for token in trace.replies[0].tokens]
        assert found == pytest.approx(expected.tolist(), abs=1e-5)

    def test_repeats_follow_a_warm_up(self) -> None:
        sampling = SamplingParams(temperature=0.8)
        profiler = profile(STORY, max_tokens=6, repeats=3, sampling=sampling)[0]
        trace = profiler.trace()
        (reply,) = trace.replies
        assert len(reply.repeats) == 3
        assert reply.seed is not None
        assert all(token.ms_sd is not None for token in reply.tokens[1:])
        assert summarize(trace, [reply]).tokens_per_second.sd is not None
        assert not profiler.notes

    @pytest.mark.parametrize("repeats", [1, 3])
    @pytest.mark.parametrize("after", [0, 1, 5])
    def test_an_interrupted_run_is_a_valid_trace(self, repeats: int, after: int) -> None:
        profiler = profile(max_tokens=20, repeats=repeats)[0]
        run = next(iter(profiler.runs(prompt(STORY))))
        for _ in itertools.islice(run, after):
            pass
        trace = profiler.trace(interrupted=True)
        (reply,) = trace.replies
        assert trace.interrupted
        assert reply.finish_reason == "interrupted"
        assert len(reply.tokens) == after
        assert len(reply.repeats) == min(1, after)
        to_json(trace)

    def test_interrupted_in_a_later_run_the_first_one_is_recorded(self) -> None:
        profiler = profile(max_tokens=8, repeats=2)[0]
        warm_up, first, second = profiler.runs(prompt(STORY)), None, None
        for run in warm_up:
            if run.number == 2:
                second = next(iter(run))
                break
            list(run)
            first = run
        assert first is not None and second is not None
        (reply,) = profiler.trace(interrupted=True).replies
        assert len(reply.tokens) == 8
        assert len(reply.repeats) == 1

    def test_active_layers_by_dropped_units(self) -> None:
        order = ("1.attn", "2.mlp", "1.mlp", "3")
        schedule = DepthSchedule(5, 0.5, 0, 1, 1, order, (0.4, 0.6, 0.6, 1.0))
        assert active_layers(schedule) == [5, 5, 5, 4, 3]  # layer 2 still has its attention


class TestFullDepth:
    def test_values_equal_those_of_a_plain_forward(self) -> None:
        trace = whole_trace()
        document = first_document()
        ids = torch.tensor([[*document.prompt_ids, *document.response_ids[:-1]]])
        full = builtin().logits(builtin().hidden_states(ids)[0, len(document.prompt_ids) - 1 :])
        full = full.log_softmax(dim=-1)
        ours = builtin().logits(Scorer(builtin(), [document]).states(trace.depth_schedule))
        kl = (full.exp() * (full - ours.log_softmax(dim=-1))).sum(dim=-1)
        for step, token in enumerate(trace.replies[0].tokens):
            assert token.full_token_id == int(full[step].argmax())
            assert token.full_logprob == pytest.approx(float(full[step, token.token_id]), abs=1e-5)
            assert token.kl == pytest.approx(float(kl[step]), abs=1e-5)
            assert token.full_text == builtin().tokenizer.decode([token.full_token_id])
        assert any(token.kl > 1e-3 for token in trace.replies[0].tokens)

    def test_needed_depth_equals_decoding_at_each_constant_depth(self) -> None:
        model, trace = builtin(), whole_trace()
        document, order = first_document(), trace.needed_order
        assert order is not None
        choices = []
        for count in range(len(order) + 1):  # token by token, without one-pass scoring
            cache, tops = fill_cache(model, Document(document.prompt_ids, [0])), []
            for token_id in document.response_ids[:-1]:
                logits = decode_step(model, cache, token_id, order[:count])
                tops.append(int(logits.argmax()))
            choices.append(tops)
        for step in range(1, len(document.response_ids)):
            column = [tops[step - 1] for tops in choices]
            needed = min(
                16 - count
                for count in range(len(order) + 1)
                if all(top == column[0] for top in column[: count + 1])
            )
            assert trace.replies[0].tokens[step].needed_depth == needed
        found = {token.needed_depth for token in trace.replies[0].tokens[1:]}
        assert len(found) > 1

    def test_needed_depth_counts_from_full_depth_down(self) -> None:
        model = builtin()
        columns = [[1, 1, 1, 1], [1, 2, 1, 1], [1, 1, 2, 1]]  # the second agrees again, too late
        choices = [torch.tensor(column) for column in columns]
        assert needed_depths(model, ("7", "9"), choices) == [14.0, 16.0, 15.0, 14.0]

    def test_the_lens_equals_that_of_every_hidden_state(self) -> None:
        model, document = builtin(), first_document()
        ids = torch.tensor([[*document.prompt_ids, *document.response_ids[:-1]]])
        with torch.inference_mode():
            output = model.causal_lm(ids, output_hidden_states=True)
            states = list(output.hidden_states[1:])
            norm, head = model.causal_lm.model.norm, model.causal_lm.lm_head
            tops = [head(norm(state)).argmax(dim=-1)[0] for state in states[:-1]]
            tops.append(output.logits.argmax(dim=-1)[0])
        first = len(document.prompt_ids)
        *_, (count, found) = saturation_layers(model, document)
        assert count == 16
        assert len(found) == len(document.response_ids) - 1
        for at, layers in enumerate(found):
            column = [int(top[first + at]) for top in tops]
            expected = min(n for n in range(1, 17) if len(set(column[n - 1 :])) == 1)
            assert layers == expected
        assert len(set(found)) > 3

    def test_the_lens_in_small_groups_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        document = first_document()
        *_, (_, whole) = saturation_layers(builtin(), document)
        monkeypatch.setattr("d3cli.scoring.needed_depth.LENS_BYTES", 1)
        steps = [(count, list(found)) for count, found in saturation_layers(builtin(), document)]
        assert [count for count, _ in steps] == list(range(1, 17))
        assert steps[-1][1] == whole

    @pytest.mark.parametrize("name", ["gemma2", "opt", "gpt2", "mixtral"])
    def test_other_families_have_needed_depths_and_parts(self, name: str) -> None:
        model = tiny(name).gated
        order = model.schedule(0.5).skip_order
        document = Document([3, 4, 5], [6, 7, 8, 9, 10])
        choices = list(constant_depth_choices(model, Scorer(model, [document]), order))
        assert len(choices) == len(order) + 1
        assert len(needed_depths(model, order, choices)) == 5
        *_, (count, settled) = saturation_layers(model, document)
        assert (count, len(settled)) == (model.num_layers, 4)
        parts = PartTimes(model, fill_cache(model, document), document, 4)
        assert list(parts)[-1] == 1.0
        assert bool(parts.mlp) == (model.gate.family.mlp is not None)
        assert len(parts.layers[0]) == model.num_layers

    def test_the_cautious_default_searches_all_units_that_may_be_dropped(self) -> None:
        model = tiny("llama").gated
        default = model.schedule()
        assert nested_family(model, default, Source.DEFAULT) == model.schedule(0.5).skip_order
        explicit = model.schedule(0.9, core_first=2)
        assert nested_family(model, explicit, Source.FLAGS) == explicit.skip_order
        nothing = model.schedule(0.9, core_first=model.num_layers, core_last=0)
        assert nested_family(model, nothing, Source.FLAGS) == model.schedule(0.5).skip_order


class TestClock:
    def test_steps_are_spread_over_the_reply(self) -> None:
        assert spread_steps(4, 16) == [1, 2, 3]
        assert spread_steps(1, 16) == []
        steps = spread_steps(1001, 10)
        assert len(set(steps)) == 10
        assert sum(steps) / 10 == pytest.approx(500.5, abs=1)
        assert steps[0] > 1 and steps[-1] < 1000

    def test_both_depths_read_the_same_forced_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, document = builtin(), first_document()
        schedule = model.schedule(0.9)
        seen: list[tuple[int, int, int, int]] = []

        def watch(model_, cache, token_id, dropped):  # type: ignore[no-untyped-def]
            seen.append((cache.position, token_id, len(dropped), cache.full_length))
            return decode_step(model_, cache, token_id, dropped)

        monkeypatch.setattr("d3cli.scoring.step_times.decode_step", watch)
        times = StepTimes(model, fill_cache(model, document), document, schedule, 2, 3)
        assert [round(share, 3) for share in times] == [0.333, 0.667, 1.0]
        assert len(times.ratios) == 4
        ids = [*document.prompt_ids, *document.response_ids]
        expected = []
        for number, step in enumerate(reversed(times.steps)):
            dropped = len(schedule.dropped(step))
            at = len(document.prompt_ids) + step - 1
            warm_up = [] if number else [0, dropped]
            order = [*warm_up, *[0, dropped, dropped, 0] * 2]  # ABBA twice
            expected += [(at, ids[at], n, at) for n in order]
        assert seen == expected

    def test_the_interval_contains_the_ratio(self) -> None:
        model, document = builtin(), first_document()
        times = StepTimes(model, fill_cache(model, document), document, model.schedule(0.9), 3, 2)
        list(times)
        clock = clock_trace(times)
        assert clock.low <= clock.ratio <= clock.high
        assert clock.ratios == tuple(times.ratios)
        assert (clock.steps, clock.rounds) == (2, 3)

    def test_parts_add_up_to_no_more_than_the_step(self) -> None:
        model, document = builtin(), first_document()
        parts = PartTimes(model, fill_cache(model, document), document, 5)
        before = [len(module._forward_hooks) for module in model.causal_lm.modules()]
        list(parts)
        assert len(parts.step) == 5
        for layers, attn, mlp, head, step in zip(
            parts.layers, parts.attn, parts.mlp, parts.head, parts.step, strict=True
        ):
            assert all(a + m < layer for layer, a, m in zip(layers, attn, mlp, strict=True))
            assert sum(layers) + head < step
        assert before == [len(module._forward_hooks) for module in model.causal_lm.modules()]


class TestSummary:
    def test_figures_by_hand(self) -> None:
        full = [0, 1, 2, 9, 4]
        trace = made_trace(
            [4, 4, 3, 2, 2],
            [10.0, 20.0, 30.0, 40.0],
            full_token_id=full,
            full_text=["x"] * 5,
            full_logprob=[-0.5] * 5,
            kl=[0.0, 0.0, 0.1, 0.2, 0.3],
        )
        found = summarize(trace, trace.replies)
        assert found.mean_depth == 2.75
        assert found.layer_ratio == pytest.approx(4 / 2.75)
        assert found.byte_ratio == pytest.approx(4 * 60 / (60 + 50 + 40 + 40))
        assert found.byte_ratio_net == pytest.approx(4 * 60 / (60 + 50 + 40 + 40 + 60))
        assert (found.compared, found.agreed) == (3, 2)
        assert found.agreement == pytest.approx(2 / 3)
        assert (found.tpot_ms, found.tpot_p95_ms) == (25.0, pytest.approx(38.5))
        assert found.tokens_per_second.mean == pytest.approx(40.0)
        assert found.perplexity == pytest.approx(math.e)
        assert found.full_perplexity == pytest.approx(math.exp(0.5))
        assert found.kl == pytest.approx(0.15)
        assert found.needed is None
        (stretch,) = found.stretches
        assert (stretch.begin, stretch.end, stretch.tokens) == (1, 5, 4)
        assert stretch.agreement == 0.75

    @pytest.mark.parametrize(
        ("late", "words"),
        [(2.0, "as D³ assumes"), (4.0, "contradicts D³'s assumption"), (3.0, "no evidence")],
    )
    def test_the_assumption_is_judged_by_the_halves(self, late: float, words: str) -> None:
        from d3cli.profile.sentences import sentences

        count = 81
        wobble = [0.1 * (step % 3) for step in range(count)]
        needed = [(3.0 if 2 * step <= count else late) + wobble[step] for step in range(count)]
        trace = made_trace(
            [4.0] * count,
            [1.0] * (count - 1),
            needed_depth=needed,
            saturation_layer=[3] * count,
        )
        found = summarize(trace, trace.replies)
        assert found.needed.late - found.needed.early == pytest.approx(late - 3, abs=0.05)
        assert words in " ".join(sentences(found, trace, trace.replies))

    def test_an_unstarted_reply_does_not_change_the_rates(self) -> None:
        trace = made_trace([4, 3, 2], [10.0, 30.0])
        [reply] = trace.replies
        unbegun = replace(reply, tokens=(), repeats=(), finish_reason="interrupted")
        trace = replace(trace, replies=(reply, unbegun))
        alone, both = summarize(trace, [reply]), summarize(trace, trace.replies)
        assert both.tokens_per_second == alone.tokens_per_second
        assert both.ttft_s == alone.ttft_s
        assert both.byte_ratio_net == alone.byte_ratio_net
        assert both.replies == 2

    def test_few_tokens_give_no_verdict(self) -> None:
        from d3cli.profile.sentences import sentences

        for count in (2, 20, 32):
            trace = made_trace(
                [4.0] * count,
                [1.0] * (count - 1),
                needed_depth=[3.0] * count,
                saturation_layer=[3] * count,
            )
            found = summarize(trace, trace.replies)
            assert found.needed.margin is found.needed.early is found.needed.late is None
            assert "too few tokens" in " ".join(sentences(found, trace, trace.replies))

    def test_rounding_is_no_difference(self) -> None:
        from d3cli.profile.sentences import sentences

        count = 50
        trace = made_trace(
            [4.0] * count,
            [1.0] * (count - 1),
            needed_depth=[10.307692307692308 / 3] * count,
            saturation_layer=[3] * count,
        )
        words = " ".join(sentences(summarize(trace, trace.replies), trace, trace.replies))
        assert "may be chance" in words

    def test_suspended_time_is_not_decoding_time(self) -> None:
        profiler = profile(max_tokens=4)[0]
        run = next(iter(profiler.runs(prompt(STORY))))
        list(run)
        before = run.ms[-1]
        run.leave_out(0.001)
        assert run.ms[-1] == pytest.approx(before - 1)
        run.leave_out(1000)  # between two steps
        assert run.ms[-1] == pytest.approx(before - 1)

    def test_a_reply_of_one_token_has_no_rates(self) -> None:
        profiler, trace = profile(STORY, max_tokens=1, compare=True, layers=True)
        assert "1 of 1 replies have no decode step" in profiler.notes[0]
        found = summarize(trace, trace.replies)
        assert found.tokens == 1
        assert found.mean_depth is found.layer_ratio is found.tpot_ms is None
        assert found.tokens_per_second is None
        assert trace.replies[0].clock is None

    def test_needed_depth_is_refused_if_nothing_can_be_dropped(self) -> None:
        model = tiny("llama").gated
        one = DepthSchedule.full(1)
        object.__setattr__(one, "num_layers", model.num_layers)
        from d3cli.depth.families import UNLISTED

        gate = model.gate
        family, gate.family = gate.family, replace(UNLISTED)
        try:
            with pytest.raises(UsageError, match="no needed depth can be found"):
                nested_family(model, model.schedule("off"), Source.OFF)
        finally:
            gate.family = family

    def test_the_trace_describes_schedule_and_model(self) -> None:
        profiler, trace = profile(SUM, max_tokens=5)
        assert isinstance(profiler, Profiler)
        assert trace.depth_schedule == builtin().schedule(0.97, start=4)
        assert trace.model.fingerprint == builtin().origin.key.fingerprint
        assert trace.model.weight_bytes == builtin().weight_bytes
