"""Right answers to a task at full depth and at a schedule, as ``d3 calibrate`` reports them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3cli.cli import signals
from d3cli.cli.output import Output

if TYPE_CHECKING:
    from d3cli.calibrate.calibrator import Calibrator
    from d3cli.depth.prompt_order import Schedule
    from d3cli.evals.accuracy import Asked, Share, TaskResult
    from d3cli.evals.tasks import Question
    from d3cli.model.model import LoadedModel

# The share of --max-time that is kept for the task. The first half is for the chosen schedule;
# full depth then answers the same questions, however long it takes.
SHARE = 0.3
# Both answer at least so many questions.
FEWEST = 8


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What the report says about a task.

    Attributes:
        questions: in the file.
        result: None where nothing was asked; `why_not` then says why.
        most: tokens of a reply.
        decays: whether the schedule drops anything in replies of that length; if not, nothing but
            the form of the weights differs.
    """

    file: Path
    questions: int
    most: int
    asked: "Asked | None" = None
    result: "TaskResult | None" = None
    why_not: str = ""
    decays: bool = True

    def to_json(self) -> dict[str, Any]:
        """The object "task" of ``--json``."""
        asked, result = self.asked, self.result
        return {
            "file": str(self.file),
            "questions": self.questions,
            "reply_tokens": self.most,
            "seen": None if asked is None else asked.seen,
            "too_long": None if asked is None else asked.too_long,
            "why_not": self.why_not or None,
            "decays": self.decays if self.result is not None else None,
        } | ({"result": None} if result is None else {"result": asdict(result)})

    def rows(self) -> Iterator[tuple[str, str]]:
        """The rows of the text report."""
        yield "task", f"{self.file}: {self.why_not or self._asked_in_words()}"
        if (result := self.result) is None:
            return
        yield "  full depth", _share(result.full)
        same = "" if self.decays else "; it is full depth: only the form of the weights differs"
        yield "  schedule", _share(result.schedule) + same
        difference = result.schedule.value - result.full.value
        verdict = "no significant difference" if result.p_value >= 0.05 else "significant"
        yield (
            "  difference",
            f"{100 * difference:+.1f} points: {result.only_full} right at full depth only, "
            f"{result.only_schedule} at the schedule only; {verdict} (p = "
            f"{result.p_value:.2g}, McNemar's exact test)",
        )

    def _asked_in_words(self) -> str:
        assert self.asked is not None and self.result is not None
        parts = [f"{self.result.full.questions} of {self.questions} questions"]
        if self.asked.seen:
            parts.append(f"{self.asked.seen} left out, since the search read them")
        if self.asked.too_long:
            parts.append(f"{self.asked.too_long} left out, since they exceed the context")
        return "; ".join([*parts, f"greedy replies of at most {self.most} tokens"])


def _share(share: "Share") -> str:
    return (
        f"{share.right} of {share.questions} right: {share.value:.1%} ({share.low:.1%} to "
        f"{share.high:.1%})"
    )


def run_task(
    output: Output,
    calibrator: "Calibrator",
    file: Path,
    questions: "Sequence[Question]",
    until: float,
) -> TaskReport:
    """Asks the questions in the time that is left.

    Args:
        until: by `time.monotonic`; the chosen schedule answers in half of the time until then.
    """
    from d3cli.evals.accuracy import questions_for

    outcome, settings, forms = calibrator.outcome, calibrator.settings, calibrator.forms
    most = settings.reply_tokens
    if outcome.chosen is None:
        why = "not asked, since no schedule was chosen"
        return TaskReport(file, len(questions), most, why_not=why)
    chosen = outcome.chosen.candidate
    # Nothing here may hold a model: the forms take turns in memory.
    asked = questions_for(
        forms.take(chosen.quantization), questions, calibrator.plan.search, settings.seed
    )
    if not asked.prompts:
        why = "none of its questions is unseen and fits the context"
        return TaskReport(file, len(questions), most, asked, why_not=why)
    result = ask(
        output,
        asked,
        chosen.schedule,
        most,
        lambda: forms.model,
        lambda: forms.take(forms.reference),
        until,
        settings.confidence,
    )
    decays = drops_within(chosen.schedule, most)
    return TaskReport(file, len(questions), most, asked, result, decays=decays)


def drops_within(schedule: "Schedule", most: int) -> bool:
    """Whether a schedule drops anything in a reply of at most `most` tokens."""
    return schedule.num_dropped(most - 1) > 0


def ask(
    output: Output,
    asked: "Asked",
    schedule: "Schedule",
    most: int,
    at_schedule: "Callable[[], LoadedModel]",
    at_full: "Callable[[], LoadedModel]",
    until: float,
    confidence: float,
) -> "TaskResult":
    """Asks the questions at a schedule and at full depth, in the time that is left.

    Args:
        most: tokens of a reply.
        at_schedule, at_full: return the model for each; the first one is let go of before the other
            is asked for.
        until: by `time.monotonic`; the schedule answers in half of the time until then.
    """
    from d3cli.evals.accuracy import compare_answers

    now = time.monotonic()
    deadline = now + max(0.0, until - now) / 2
    decayed: list[bool] = []
    full: list[bool] = []

    def steps() -> Iterator[tuple[str, float]]:
        for is_right in _mark(at_schedule(), asked.prompts, schedule, most):
            decayed.append(is_right)
            yield "task: answers at the schedule", 0.5 * len(decayed) / len(asked.prompts)
            if len(decayed) >= FEWEST and time.monotonic() > deadline:
                break
        same = asked.prompts[: len(decayed)]
        for is_right in _mark(at_full(), same, None, most):
            full.append(is_right)
            yield "task: answers at full depth", 0.5 + 0.5 * len(full) / len(same)

    output.progress.follow(steps())
    return compare_answers(full, decayed, confidence)


def _mark(
    model: "LoadedModel",
    prompts: "Sequence[tuple[Question, tuple[int, ...]]]",
    schedule: "Schedule | None",
    most: int,
) -> Iterator[bool]:
    """Whether each answer is right; None for a schedule is full depth."""
    from d3cli.evals.accuracy import answer

    schedule = schedule or model.schedule("off")
    for question, ids in prompts:
        signals.check()
        yield question.is_right(answer(model, ids, schedule, most))
