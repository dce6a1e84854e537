"""Right answers, counted and compared in pairs."""

import math

import pytest

from d3cli.depth.schedule import DepthSchedule
from d3cli.evals.accuracy import answer, compare_answers, questions_for
from d3cli.evals.tasks import Question
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(dtype="float32", device="cpu", threads=1)


def test_the_bounds_are_wilson_s() -> None:
    full, schedule = [True] * 15 + [False] * 5, [True] * 12 + [False] * 8
    found = compare_answers(full, schedule, confidence=0.95)
    assert (found.full.right, found.schedule.right, found.full.questions) == (15, 12, 20)
    z, n, p = 1.6448536269514722, 20, 0.75  # one-sided, so the 95% quantile
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found.full.low == pytest.approx(centre - half)
    assert found.full.high == pytest.approx(centre + half)
    assert (found.only_full, found.only_schedule) == (3, 0)
    assert found.p_value == pytest.approx(0.25)  # three coins that fall alike


def test_equal_answers_differ_in_nothing() -> None:
    found = compare_answers([True, False], [True, False], confidence=0.9)
    assert (found.only_full, found.only_schedule, found.p_value) == (0, 0, 1.0)


def test_questions_that_the_search_read_or_that_do_not_fit_are_left_out(demo: LoadedModel) -> None:
    questions = [Question(f"What is {n} + 4?", (str(n + 4),)) for n in range(6)]
    long = Question("fox " * 2000, ("fox",))
    everything = questions_for(demo, [*questions, long], [], seed=0)
    assert (len(everything.prompts), everything.seen, everything.too_long) == (6, 0, 1)
    read = Document(dict(everything.prompts)[questions[2]], [5])
    unseen = questions_for(demo, questions, [read], seed=0)
    assert unseen.seen == 1 and questions[2] not in dict(unseen.prompts)
    order = [question for question, _ in everything.prompts]
    assert order != questions and set(order) == set(questions)
    again = questions_for(demo, [*questions, long], [], seed=0)
    assert again == everything


def test_answers_are_those_of_the_schedule(demo: LoadedModel) -> None:
    [(question, ids)] = questions_for(
        demo, [Question("What is 12 + 7?", pattern=r"The answer is 19\.$")], [], seed=0
    ).prompts
    assert question.is_right(answer(demo, ids, demo.schedule("off"), 60))
    assert not question.is_right(answer(demo, ids, demo.schedule("off"), 3))
    order = tuple(map(str, range(15)))  # all layers but the last
    shallow = DepthSchedule(16, 1e-9, skip_order=order)
    assert not question.is_right(answer(demo, ids, shallow, 60))
