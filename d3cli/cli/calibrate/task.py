"""``d3 calibrate --task``: right answers at full depth and at the chosen schedule."""

import time
from collections.abc import Iterator, Sequence
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
    """

    file: Path
    questions: int
    most: int
    asked: "Asked | None" = None
    result: "TaskResult | None" = None
    why_not: str = ""

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
        } | ({"result": None} if result is None else {"result": asdict(result)})

    def rows(self) -> Iterator[tuple[str, str]]:
        """The rows of the text report."""
        yield "task", f"{self.file}: {self.why_not or self._asked_in_words()}"
        if (result := self.result) is None:
            return
        yield "  full depth", _share(result.full)
        yield "  chosen", _share(result.schedule)
        difference = result.schedule.value - result.full.value
        verdict = "no significant difference" if result.p_value >= 0.05 else "significant"
        yield (
            "  difference",
            f"{100 * difference:+.1f} points: {result.only_full} right at full depth only, "
            f"{result.only_schedule} at the chosen schedule only; {verdict} (p = "
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
    from d3cli.evals.accuracy import compare_answers, questions_for

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
    now = time.monotonic()
    deadline = now + max(0.0, until - now) / 2
    at_chosen: list[bool] = []
    at_full: list[bool] = []

    def steps() -> Iterator[tuple[str, float]]:
        for is_right in _mark(forms.model, asked.prompts, chosen.schedule, most):
            at_chosen.append(is_right)
            yield "task: answers at the chosen schedule", 0.5 * len(at_chosen) / len(asked.prompts)
            if len(at_chosen) >= FEWEST and time.monotonic() > deadline:
                break
        same = asked.prompts[: len(at_chosen)]
        for is_right in _mark(forms.take(forms.reference), same, None, most):
            at_full.append(is_right)
            yield "task: answers at full depth", 0.5 + 0.5 * len(at_full) / len(same)

    output.progress.follow(steps())
    result = compare_answers(at_full, at_chosen, settings.confidence)
    return TaskReport(file, len(questions), most, asked, result)


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
