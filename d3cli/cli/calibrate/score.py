"""``d3 calibrate score``: a task at full depth and at a stored or explicit schedule; no search."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from d3cli.base.errors import Setting, UsageError
from d3cli.cli import signals
from d3cli.cli.calibrate.options import Format, ScoreSettings
from d3cli.cli.calibrate.parse import parse_duration
from d3cli.cli.calibrate.task import TaskReport, ask, drops_within
from d3cli.cli.calibrate.text import template_check
from d3cli.cli.depth import calibrate_command, check_planes
from d3cli.cli.loading import load
from d3cli.cli.output import Output
from d3cli.depth.parse import parse_alpha, parse_start
from d3cli.model.form_choice import lowers_depth
from d3cli.model.schedule_choice import choose_schedule

if TYPE_CHECKING:
    from d3cli.depth.choice import Choice
    from d3cli.depth.units import UnitChoice
    from d3cli.evals.tasks import Question
    from d3cli.model.model import LoadedModel

SCHEMA = 1
CONFIDENCE = 0.9  # of each bound of a share of right answers


def run_score(output: Output, name: str, given: ScoreSettings, form: Format) -> None:
    """Asks a model the questions of a task.

    Raises:
        UsageError: there is no task, an option is impossible, the schedule drops nothing, or none
            of the questions fits the context.
    """
    file = _check(given, form)
    from d3cli.evals.tasks import read_task

    seconds, questions = parse_duration(given.max_time), read_task(file)
    model, choice = _load(output, name, given)
    task = _ask(output, model, file, questions, choice, given, seconds)
    if form is Format.json:
        output.json(
            {
                "schema": SCHEMA,
                "model": model.name,
                "source": choice.source,
                "schedule": choice.schedule.to_json(),
                "task": task.to_json(),
            }
        )
        return
    words = f"{choice.schedule.in_words()}, {choice.source.in_words}"
    output.table(("score", model.name), [("schedule", words), *task.rows()])


def _check(given: ScoreSettings, form: Format) -> Path:
    """The file of the task; what contradicts itself is refused before anything is read."""
    if given.task is None:
        raise UsageError(
            ("there are no questions: ", Setting("task"), " is missing"),
            'give a file of JSON lines: {"prompt": "…", "answers": ["…"]}',
        )
    if form is Format.csv:
        raise UsageError("a score cannot be shown as csv", "use -o table or -o json")
    if given.depth.alpha == "off":
        raise UsageError(
            (Setting("alpha", "off"), " is full depth, with which schedules are compared"),
            ("leave it out, or use a number: ", Setting("alpha", "0.99")),
        )
    return given.task


def _load(output: Output, name: str, given: ScoreSettings) -> "tuple[LoadedModel, Choice]":
    """The model, and the schedule that the options ask for."""
    depth = given.depth
    units: UnitChoice = depth.units.value
    alpha, start = parse_alpha(depth.alpha), parse_start(depth.start, given.max_tokens)
    check_planes(units, alpha, given.loading)
    model = load(
        output,
        name,
        given.loading,
        template_check(None),
        decays=lowers_depth(alpha, units),
        reply_tokens=given.max_tokens,
    )
    core = (depth.core_first, depth.core_last)
    calibrate_with = calibrate_command(name, given.loading)
    choice = choose_schedule(model, alpha, start, core, units, calibrate_with)
    for note in choice.notes:
        output.note(note)
    if not drops_within(choice.schedule, given.max_tokens):
        raise UsageError(
            f"there is nothing to compare: replies of {given.max_tokens} tokens are at full depth",
            ("lower it with ", Setting("alpha", "0.99"), f", or calibrate: {calibrate_with}"),
        )
    return model, choice


def _ask(
    output: Output,
    model: "LoadedModel",
    file: Path,
    questions: "list[Question]",
    choice: "Choice",
    given: ScoreSettings,
    seconds: float,
) -> TaskReport:
    from d3cli.evals.accuracy import questions_for

    most = min(given.max_tokens, model.context_length)
    asked = questions_for(model, questions, (), given.seed)
    if not asked.prompts:
        raise UsageError(
            f"none of the {len(questions)} questions of {file} fits the context of "
            f"{model.context_length:,} tokens",
            "use shorter questions",
        )
    with output.progress.waiting("loading"):
        # scipy takes long to import; a signal must not raise an exception inside it.
        import scipy.stats  # noqa: F401
    try:
        signals.stop_in_order()
        result = ask(
            output,
            asked,
            choice.schedule,
            most,
            lambda: model,
            lambda: model,
            time.monotonic() + seconds,
            CONFIDENCE,
        )
    finally:
        signals.exit_at_once()
    return TaskReport(file, len(questions), most, asked, result)
