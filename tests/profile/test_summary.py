"""The figures of a trace."""

import math
from dataclasses import replace

import pytest

from d3cli.profile.summary import summarize
from tests.traces import made_trace


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
