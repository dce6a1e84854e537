"""Profiles of lossless replies: what was drafted, what was accepted, and what it took."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from d3cli.base.errors import TraceError
from d3cli.base.settings import BUILTIN
from d3cli.cli.profile.tables import csv_text, report
from d3cli.decode.draft.by_model import ModelSource
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.profile.html.page import html_report
from d3cli.profile.run import Drafting
from d3cli.profile.sentences import sentences
from d3cli.profile.summary import summarize, with_figures
from d3cli.profile.trace import Trace
from d3cli.profile.trace_file import parse_trace
from d3cli.profile.trace_lossless import DifferenceTrace, EqualityTrace
from d3cli.scoring.near_tie import gap_and_rounding
from tests.decode.draft.fixed import Always
from tests.traces import DRAFTS, STORY, always, builtin, lossless_trace, profile, prompt


def written(trace: Trace) -> dict[str, Any]:
    return json.loads(json.dumps(with_figures(trace)))


def read(data: object) -> Trace:
    return parse_trace(json.dumps(data).encode(), "t.json")


def words(trace: Trace) -> str:
    return " ".join(sentences(summarize(trace, trace.replies), trace, trace.replies))


def test_a_trace_has_the_passes_and_figures_of_the_engine() -> None:
    trace = lossless_trace()
    reply = Engine(builtin()).stream(
        STORY, schedule=DRAFTS, max_tokens=40, drafter=always().drafter
    )
    list(reply)
    one, stats = trace.replies[0], reply.stats
    assert one.lossless is not None and stats.lossless is not None
    assert [token.token_id for token in one.tokens] == [token.token_id for token in reply.tokens]
    assert [token.drafted_by for token in one.tokens] == [t.drafted_by for t in reply.tokens]
    assert [(done.step, done.tokens, done.draft_ids) for done in one.lossless.passes] == [
        (done.step, done.tokens, done.draft_ids) for done in reply.verifications
    ]
    found = summarize(trace, [one])
    assert found.lossless is not None
    assert 0 < found.lossless.accepted < found.lossless.drafted
    for name in ("drafted", "accepted", "passes", "tokens_per_pass"):
        assert getattr(found.lossless, name) == getattr(stats.lossless, name)
    assert found.byte_ratio == found.byte_ratio_net == pytest.approx(stats.byte_ratio)
    assert (found.mean_depth, found.agreement, found.bits) == (16, None, None)


def test_tokens_of_one_pass_share_its_time() -> None:
    for reply in lossless_trace().replies:
        assert reply.lossless is not None
        times = [token.ms or 0.0 for token in reply.tokens]
        assert sum(times) == pytest.approx(1000 * reply.repeats[0].decode_s)
        for done in reply.lossless.passes:
            shared = times[done.step : done.step + done.tokens]
            assert shared == pytest.approx([shared[0]] * len(shared))
            assert math.fsum(shared) >= done.ms * (1 - 1e-9)


def test_thrown_away_drafts_have_their_text() -> None:
    decode = builtin().tokenizer.decode
    for reply in lossless_trace().replies:
        assert reply.lossless is not None
        for done in reply.lossless.passes:
            if done.has_rejected:
                token = reply.tokens[done.step + done.accepted]
                assert token.rejected_text == decode(done.draft_ids[done.accepted :])


def test_compared_with_plain_decoding_the_tokens_are_equal() -> None:
    trace = lossless_trace()
    for reply in trace.replies:
        assert reply.clock is not None and reply.lossless is not None
        assert len(reply.clock.ratios) == 2
        assert reply.lossless.equality == EqualityTrace(replies=3, equal=3)
    assert "All 6 lossless replies have the tokens of plain decoding" in words(trace)


def test_sampled_replies_are_timed_and_not_compared() -> None:
    sampling = SamplingParams(temperature=0.8, seed=3)
    trace = profile(
        STORY, max_tokens=12, compare=True, drafting=always(), sampling=sampling, schedule=DRAFTS
    )[1]
    [reply] = trace.replies
    assert reply.lossless is not None
    assert reply.lossless.equality is None
    assert reply.clock is not None
    assert "the distribution of plain decoding, not its tokens" in words(trace)


def test_a_difference_is_named_with_its_cause() -> None:
    trace = lossless_trace()
    first = trace.replies[0]
    assert first.lossless is not None
    for gap, verdict in ((0.1, "so it is a near-tie"), (0.9, "please report this")):
        difference = DifferenceTrace(
            step=7,
            token_id=1,
            text=" a",
            plain_token_id=2,
            plain_text=" the",
            gap=gap,
            rounding=0.06,
        )
        equality = EqualityTrace(replies=3, equal=1, difference=difference)
        lossless = replace(first.lossless, equality=equality)
        found = replace(trace, replies=(replace(first, lossless=lossless),))
        assert f'is 7: " a" instead of " the". Their logits are {gap} apart' in words(found)
        assert verdict in words(found)


def test_rounding_is_small_beside_the_gap_of_two_choices() -> None:
    model, reply = builtin(), Engine(builtin()).stream(STORY, max_tokens=4)
    list(reply)
    ids, sampler = list(reply.prompt_ids), reply.new_sampler()
    best, other = reply.tokens[0].token_id, reply.tokens[1].token_id
    gap, rounding = gap_and_rounding(model, sampler, ids, best, other)
    with torch.inference_mode():
        logits = model.causal_lm(torch.tensor([ids])).logits[0, -1]
    assert gap == pytest.approx(float(logits[best] - logits[other]), abs=1e-3)
    assert rounding < 1e-3 < gap


@pytest.mark.parametrize("after", [0, 1, 2, 6])
def test_interrupted_within_a_pass_the_trace_is_valid(after: int) -> None:
    profiler = profile(max_tokens=40, drafting=always(), schedule=DRAFTS)[0]
    run = next(iter(profiler.runs(prompt(STORY))))
    for _ in itertools.islice(run, after):
        pass
    trace = profiler.trace(interrupted=True)
    assert len(trace.replies[0].tokens) == after
    assert read(written(trace)) == trace


def test_a_stop_string_within_a_pass_leaves_the_rest_out() -> None:
    whole = lossless_trace().replies[0]
    assert whole.lossless is not None
    done = next(done for done in whole.lossless.passes if done.accepted > 1)
    stop = whole.tokens[done.step].text
    trace = profile(
        STORY,
        max_tokens=40,
        stop=(stop,),
        drafting=always(),
        schedule=DRAFTS,
    )[1]
    [reply] = trace.replies
    assert reply.finish_reason == "stop"
    assert reply.lossless is not None
    last = reply.lossless.passes[-1]
    assert last.step + last.tokens > len(reply.tokens)
    assert read(written(trace)) == trace


def test_a_trace_of_schema_2_has_no_passes() -> None:
    trace = profile(STORY, max_tokens=3)[1]
    data = written(trace) | {"schema": 2}
    del data["lossless"], data["replies"][0]["lossless"]
    for token in data["replies"][0]["tokens"]:
        del token["pass_number"], token["drafted_by"], token["rejected_text"]
    assert read(data) == trace


LOSSLESS, TOKENS = ("replies", 0, "lossless"), ("replies", 0, "tokens")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("lossless",), None, "only some of the replies are lossless"),
        ((*LOSSLESS,), None, "tokens were drafted, but the reply has no passes"),
        ((*LOSSLESS, "passes"), [], "no pass gave step 1"),
        ((*LOSSLESS, "passes", 1, "step"), 1, "pass 1 begins at step 1 instead of"),
        ((*LOSSLESS, "passes", 1, "tokens"), 39, r"gives \d+ tokens that were not drafted"),
        ((*LOSSLESS, "passes", 1, "accepted"), 9, "accepts 9 of 7 drafted tokens"),
        ((*LOSSLESS, "passes", 1, "source"), None, "a draft has no source"),
        ((*LOSSLESS, "passes", 0, "draft_ids"), [1], "a draft has no source"),
        (
            (*LOSSLESS, "passes", 1, "draft_ids", 0),
            0,
            "not the token that was drafted and accepted",
        ),
        ((*LOSSLESS, "passes", 0, "verify_ms"), -1.0, "verify_ms"),
        ((*LOSSLESS, "skip_order"), ["1"], "the schedule has one for all"),
        ((*LOSSLESS, "equality", "equal"), 1, "does not fit the difference"),
        ((*TOKENS, 1, "pass_number"), 5, "step 1 is of pass 0, not 5"),
        ((*TOKENS, 3, "rejected_text"), None, "rejected_text does not fit step 3"),
        ((*TOKENS, 0, "pass_number"), 0, "step 0 comes from the prefill"),
        ((*TOKENS, 1, "drafted_by"), "lookup", "step 1 was drafted by None, not lookup"),
        ((*TOKENS, 0, "rejected_text"), "x", "step 0 comes from the prefill"),
        ((*TOKENS, 2, "bytes_read"), 1, "its share of the pass is at least"),
        ((*TOKENS, 2, "depth"), 9.0, "below full depth"),
        (("lossless", "schedule", "num_layers"), 17, "another number of layers"),
        (("lossless", "source"), "guess", "source"),
    ],
)
def test_inconsistent_passes_are_refused(path: tuple[Any, ...], value: object, says: str) -> None:
    data: Any = written(lossless_trace())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(TraceError, match=says) as error:
        read(data)
    assert "\n" not in str(error.value)


def test_every_report_shows_sources_and_thrown_away_drafts() -> None:
    trace = lossless_trace()
    text, page, table = report(trace, 160), html_report(trace), csv_text(trace).splitlines()
    tokens = [token for reply in trace.replies for token in reply.tokens]
    drafted = sum(token.drafted_by == "depth" for token in tokens)
    assert page.count('<span class="by-depth" title=') == drafted
    thrown = sum(token.rejected_text is not None for token in tokens)
    assert page.count("<del>") == thrown + len(trace.replies)  # and in the label of the switch
    assert table[0].endswith("bytes_read,pass_number,drafted_by,rejected_text")
    assert sum(line.split(",")[-2] == '"""depth"""' for line in table[1:]) >= drafted - 1
    for part in ("drafted by", "instead of", "drafts by D³", "tokens a pass", "verify"):
        assert part in text
    assert "no map of layers" in text
    assert 'id="chart-0-passes"' in page
    assert 'id="chart-0-layers"' not in page


def test_a_draft_model_that_finds_no_token_is_recorded_and_named() -> None:
    broken = load_model(BUILTIN, dtype="float32", device="cpu")
    broken.causal_lm.lm_head.weight = torch.nn.Parameter(
        torch.full_like(broken.causal_lm.lm_head.weight, torch.nan), requires_grad=False
    )
    drafting = Drafting(Always(ModelSource(builtin(), broken)), "model", "other")
    full = DepthSchedule.full(16)
    trace = profile(STORY, max_tokens=8, compare=True, drafting=drafting, schedule=full)[1]
    [reply] = trace.replies
    assert reply.lossless is not None
    assert {(done.source, done.draft_ids) for done in reply.lossless.passes[:6]} == {("model", ())}
    assert reply.lossless.equality == EqualityTrace(replies=3, equal=3)
    assert read(written(trace)) == trace
    assert "Nothing was drafted: the draft model found no token" in words(trace)
    assert html_report(trace)


def test_full_depth_that_drafts_nothing_says_so() -> None:
    schedule = DepthSchedule.full(16)
    trace = profile(STORY, max_tokens=6, drafting=always(), schedule=schedule)[1]
    assert "Nothing was drafted: no draft promised to pay" in words(trace)
    assert "no drafts: at full depth there is nothing to leave out" in report(trace, 160)
    assert html_report(trace)
