"""A profiled run: its tokens, its repeats, and what is left of an interrupted one."""

import itertools

import pytest
import torch

from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.profile.profiler import Profiler
from d3cli.profile.record import active_layers
from d3cli.profile.summary import summarize
from d3cli.profile.trace_file import to_json
from d3cli.scoring.one_pass import Scorer
from tests.traces import (
    STORY,
    SUM,
    builtin,
    first_document,
    profile,
    prompt,
    whole_trace,
)


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

    def test_the_trace_describes_schedule_and_model(self) -> None:
        profiler, trace = profile(SUM, max_tokens=5)
        assert isinstance(profiler, Profiler)
        assert trace.depth_schedule == builtin().schedule(0.97, start=4)
        assert trace.model.fingerprint == builtin().origin.key.fingerprint
        assert trace.model.weight_bytes == builtin().weight_bytes
        assert trace.model.kernels is not None
        assert trace.model.kernels["384 x 128"] == "torch"
