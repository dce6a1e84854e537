"""What a search can look at in its time."""

import pytest

from d3cli.base.errors import CalibrationError, UsageError
from d3cli.calibrate.budget import check_halves, make_budget
from d3cli.calibrate.pace import measure_pace
from d3cli.scoring.documents import Document
from tests.planted import documents, planted


def plan(seconds: float, **options: object):
    texts = [Document([1] * 60, [1] * 200)] * 60
    settings = {
        "units": {"layer": 14, "sublayer": 28},
        "order": "auto",
        "pace": 5000.0,
        "seconds": seconds,
    }
    return make_budget(texts, texts, **settings | options)


def test_with_enough_time_nothing_is_left_out() -> None:
    whole = plan(1e9)
    assert whole.greedy and not whole.left_out
    assert whole.stages == (12, 30, 60)


def test_short_of_time_the_plan_fits_it_and_says_what_is_left_out() -> None:
    whole = plan(1e9)
    less = plan(0.5 * whole.estimate)
    assert less.estimate <= 0.5 * whole.estimate
    assert less.left_out
    assert less.search_deadline < 0.5 * whole.estimate
    least = plan(0.3 * whole.estimate)
    assert not least.greedy and len(least.search) >= 15
    assert "the order is by influence instead of greedy" in least.left_out
    assert least.left_out[-1].endswith("documents are used")
    assert plan(0.2 * whole.estimate, all_kinds=False).kinds == ("layer",)


def test_the_pace_is_not_that_of_the_pass_that_reads_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    took = iter([40.0, 0.5, 2.0])
    clock = [0.0]
    monkeypatch.setattr("d3cli.calibrate.pace.time.monotonic", lambda: clock[0])

    def score(*_: object) -> None:
        clock[0] += next(took)

    monkeypatch.setattr("d3cli.calibrate.pace.score", score)
    texts = documents()[:8]
    assert measure_pace(planted(), texts) == 8 * max(map(len, texts)) / 2.0


def test_without_time_the_refusal_says_what_it_takes() -> None:
    with pytest.raises(CalibrationError, match=r"takes about .* here, but no time is left"):
        plan(-2.0)
    with pytest.raises(CalibrationError, match=r"but only 1 s are left"):
        plan(1.0)


def test_explicit_choices_are_never_left_out() -> None:
    seconds = 0.6 * plan(1e9).estimate
    assert plan(seconds, order="greedy").greedy
    assert len(plan(seconds, all_documents=True).search) == 60
    assert plan(0.4 * seconds).kinds == ("layer", "sublayer")
    assert not plan(1e9, order="influence").greedy


def test_too_little_text_in_a_half_is_refused() -> None:
    short = [Document([1] * 9, [1] * 20)] * 20  # 400 tokens
    with pytest.raises(UsageError, match="too little text"):
        check_halves(short, short)


def test_a_search_that_takes_far_too_long_is_refused() -> None:
    with pytest.raises(CalibrationError, match="only 60 s are left") as error:
        plan(60, pace=20.0)
    assert error.value.hint.startswith("raise max_seconds to ")
    minutes = int(error.value.hint.split()[3])
    assert plan(60.0 * minutes, pace=20.0).estimate <= 60 * minutes


def test_forms_that_can_at_least_be_compared_are_not_refused() -> None:
    comparing = 4 * 2 * 30 * 260 / 20.0  # seconds: two halves of at least 30 documents
    least = plan(2.1 * comparing, pace=20.0, forms=4)
    assert least.estimate == least.seconds
    assert f"{2 * len(least.search)} of 120 documents are used" in least.left_out
    assert least.left_out[0].startswith("schedules are searched only if time is left")
    for forms in (1, 4):
        with pytest.raises(CalibrationError, match="are left"):
            plan((2.1 if forms == 1 else 1.9) * comparing, pace=20.0, forms=forms)


def test_a_faster_search_allows_a_more_thorough_one_but_not_a_shorter_test() -> None:
    whole = plan(1e9)
    seconds = 0.3 * whole.estimate
    first = plan(seconds)
    second = plan(seconds, search_pace=50_000.0)
    assert second.is_more_thorough(first) and not first.is_more_thorough(second)
    assert not second.is_more_thorough(second)
    assert second.greedy and len(second.search) >= len(first.search)
    assert plan(seconds, search_pace=1e12).estimate > 0.05 * whole.estimate  # the test remains
