"""Profiles whose replies run in the orders of their own prompts."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from d3cli.base.errors import TraceError
from d3cli.cli.profile.against import against_json
from d3cli.cli.profile.tables import csv_text, report
from d3cli.decode.sampling import SamplingParams
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.profile.cells import Cell, cells
from d3cli.profile.html.page import html_report
from d3cli.profile.profiler import Profiler
from d3cli.profile.run import ProfileOptions
from d3cli.profile.sentences import schedule as schedule_in_words
from d3cli.profile.trace import Trace
from d3cli.profile.trace_file import parse_trace, to_json
from d3cli.scoring.one_pass import score
from d3cli.scoring.prompt_orders import MeasuredPrompt
from tests.families import tiny
from tests.traces import FEW_ROUNDS, prompt

TEXTS = ("w1 w2 w3 w4 w5 w6 w7 w8 w9 " * 2, "w90 w81 w72 w63 w54 w45 w36 w27 w18 " * 3, "w5 w6")


def run(*texts: str, **options: Any) -> tuple[Profiler, Trace]:
    """Profiles texts in their own orders with a model that has read nothing before."""
    model = tiny.__wrapped__("llama").gated
    schedule = model.schedule(0.93, start=2)
    assert isinstance(schedule, PromptSchedule)
    options = {"max_tokens": 16, "needed_along": schedule, "compare": True} | options
    profiler = Profiler(
        model,
        ProfileOptions(
            schedule=schedule,
            source=Source.PROMPT,
            sampling=SamplingParams(temperature=0),
            raw=True,
            **options,
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEW_ROUNDS.items():
            patch.setattr(f"d3cli.profile.profiler.{name}", value)
        for text in texts:
            for each in profiler.runs(prompt(text)):
                list(each)
        list(profiler.examine())
    return profiler, profiler.trace()


@pytest.fixture(scope="module")
def profiled() -> tuple[Profiler, Trace]:
    short, *long = reversed(TEXTS)
    return run(short, *long)


@pytest.fixture(scope="module")
def trace(profiled: tuple[Profiler, Trace]) -> Trace:
    return profiled[1]


def test_each_reply_records_the_order_that_ran(profiled: tuple[Profiler, Trace]) -> None:
    profiler, trace = profiled
    short, *long = trace.replies
    assert short.skip_order == ()
    assert len({reply.skip_order for reply in long}) == 2
    assert isinstance(trace.depth_schedule, PromptSchedule)
    for reply, one in zip(trace.replies, profiler._profiled, strict=True):
        document = one.document
        assert document is not None
        ordered = MeasuredPrompt(profiler.model, document.prompt_ids).ordered(trace.depth_schedule)
        assert trace.schedule_of(reply) == ordered
        assert [token.depth for token in reply.tokens] == [ordered.depth(t) for t in range(16)]
        [found] = score(profiler.model, [document], trace.depth_schedule)
        decoded = [token.logprob for token in reply.tokens]
        assert found.log_probs.tolist() == pytest.approx(decoded, abs=1e-5)
    assert "this reply runs at full depth" in str(profiler.notes[0])


def test_full_depth_is_compared_in_the_order_that_ran(trace: Trace) -> None:
    short, *long = trace.replies
    assert all(token.agrees for token in short.tokens)
    for reply in long:
        dropping = [token for token in reply.tokens if token.dropped_units]
        assert dropping and any(token.kl > 1e-6 for token in dropping)
        assert all(token.kl < 1e-6 for token in reply.tokens if not token.dropped_units)


def test_needed_depths_follow_each_replys_own_order(trace: Trace) -> None:
    short, *long = trace.replies
    assert trace.needed_order is None
    assert all(reply.needed_order == reply.skip_order for reply in long)
    assert short.needed_order == trace.depth_schedule.units  # the model's: the prompt has none
    assert all(token.needed_depth is not None for r in trace.replies for token in r.tokens[1:])


def test_full_depth_needs_the_prompts_order_as_well() -> None:
    model = tiny("llama").gated
    _, found = run(
        TEXTS[0],
        needed_along=model.schedule(0.5),
        compare=False,
    )
    assert found.replies[0].needed_order == found.replies[0].skip_order


def test_repeats_of_one_prompt_have_one_order() -> None:
    profiler, found = run(TEXTS[0], TEXTS[2], repeats=3, compare=False, needed_along=None)
    assert [len(reply.repeats) for reply in found.replies] == [3, 3]
    assert not [note for note in profiler.notes if "left out" in str(note)]


def test_the_trace_is_read_back(trace: Trace) -> None:
    assert parse_trace(msgspec.json.encode(to_json(trace)), "x") == trace


@pytest.mark.parametrize(
    ("order", "problem"),
    [
        (None, "no skip_order"),
        (["3", "3"], "twice"),
        (["0"], "does not fit"),
        (["99"], "does not fit"),
        ([], "does not fit the schedule"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(
    trace: Trace, order: list[str] | None, problem: str
) -> None:
    data = to_json(trace)
    data["replies"][1]["skip_order"] = order
    with pytest.raises(TraceError, match=problem):
        parse_trace(msgspec.json.encode(data), "x")


def test_an_order_beside_that_for_all_replies_is_refused(trace: Trace) -> None:
    data = to_json(trace)
    data["schedule"] = trace.schedule_of(trace.replies[0]).to_json()
    with pytest.raises(TraceError, match="one for all"):
        parse_trace(msgspec.json.encode(data), "x")


def test_the_heat_map_shows_each_replys_own_layers(trace: Trace) -> None:
    short, *long = trace.replies
    assert {state for row in cells(trace, short, short.tokens) for state in row} == {Cell.RUN}
    for reply in long:
        table = cells(trace, reply, reply.tokens)
        dropped = {str(layer) for layer, row in enumerate(table) if Cell.SKIPPED in row}
        most = max(token.dropped_units for token in reply.tokens)
        assert dropped == set(reply.skip_order[:most])


def test_reports_tell_the_order(trace: Trace) -> None:
    assert schedule_in_words(trace).endswith("(ordered by the prompt)")
    calibrated = replace(trace, schedule=trace.schedule | {"source": "calibration"})
    assert "each prompt's own order" in schedule_in_words(calibrated)
    for reply in trace.replies[1:]:
        most = max(token.dropped_units for token in reply.tokens)
        order = " ".join(reply.skip_order[:most])
        assert f"the reply dropped layers {order}." in " ".join(
            report(replace(trace, replies=(reply,)), 300).split()
        )
        assert order in html_report(trace)
    assert "too short" in report(replace(trace, replies=trace.replies[:1]), 300)
    assert "each prompt&#39;s own" in html_report(trace)
    assert csv_text(trace).count("\n") == 1 + 3 * 16


def test_two_runs_with_other_orders_differ(trace: Trace) -> None:
    other = replace(trace, replies=trace.replies[::-1][:2])
    assert against_json(trace, trace)["differs"] == []
    assert "skip order" in against_json(trace, other)["differs"]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interrupted_run_is_recorded_and_read_back(after: int) -> None:
    profiler = run(max_tokens=12)[0]
    first = next(iter(profiler.runs(prompt(TEXTS[0]))))
    chunks = iter(first)
    for _ in range(after):
        next(chunks)
    found = profiler.trace(interrupted=True)
    [reply] = found.replies
    assert len(reply.tokens) == after
    assert bool(reply.skip_order) == bool(after)  # the prompt decides it before the first token
    assert parse_trace(msgspec.json.encode(to_json(found)), "x") == found
    assert report(found, 200)
