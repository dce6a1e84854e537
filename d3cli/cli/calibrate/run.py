"""One run of ``d3 calibrate``: read the text, search, store the result and report it."""

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from d3cli.base.amounts import signed_percent
from d3cli.base.errors import Setting, StoreError, TargetNotMetError, Words
from d3cli.cli import signals
from d3cli.cli.calibrate.loading import fit_to_score, load_to_calibrate
from d3cli.cli.calibrate.options import CalibrateSettings, Format, SearchOptions
from d3cli.cli.calibrate.parse import parse_duration, parse_target
from d3cli.cli.calibrate.report import Report, accepting, write_report
from d3cli.cli.calibrate.task import SHARE, run_task
from d3cli.cli.calibrate.text import read_documents, template_check, write_replies
from d3cli.cli.depth import calibrate_command
from d3cli.cli.model_options import DtypeName, ModelOptions
from d3cli.cli.output import Output
from d3cli.depth.calibration_record import ModelKey
from d3cli.depth.calibration_store import calibrations_of, check_writable, save
from d3cli.kernels.lean_imports import import_libraries

if TYPE_CHECKING:
    from d3cli.calibrate.budget import Budget
    from d3cli.calibrate.calibrator import Calibrator
    from d3cli.calibrate.forms import ModelForms
    from d3cli.calibrate.policies import ComparedPolicies
    from d3cli.calibrate.result import Outcome
    from d3cli.calibrate.settings import CalibrationSettings
    from d3cli.evals.tasks import Question
    from d3cli.scoring.documents import Document

REPLY_TOKENS = 256


def run_calibration(output: Output, name: str, given: CalibrateSettings, form: Format) -> None:
    """Calibrates the model called `name`.

    Raises:
        TargetNotMetError: no schedule is worth storing; the report has been written.
        StoreError: the result cannot be stored; the report has been written.
    """
    settings = search_settings(output, given.search)
    from d3cli.calibrate.texts import read_samples

    data, count = given.text.data, given.text.documents
    samples = None if data is None else read_samples(data)
    questions = _questions(given.text.task)
    reserved = SHARE * settings.max_seconds if questions else 0.0
    forms = load_to_calibrate(output, name, given.loading, template_check(samples))
    model, title = forms.model, forms.model.name
    if given.search.reply_tokens is None:
        settings = replace(settings, reply_tokens=min(REPLY_TOKENS, model.context_length))
    began = time.monotonic()
    assert model.origin.key is not None  # a model without one cannot skip layers: refused below
    check_writable(model.origin.key)
    stored: Path | StoreError | None = None
    task = policies = None
    try:
        with output.progress.waiting("reading the text"):
            # scipy takes long to import; a signal must not raise an exception inside it.
            import scipy.stats  # noqa: F401

            texts = read_documents(model, samples, count, settings.seed)
        signals.stop_in_order()
        if given.text.self_replies:
            texts = write_replies(output, model, texts, settings, began)
        del model  # the forms let go of it to load it in others
        if not given.loading.force:
            forms = fit_to_score(output, forms, texts)
        calibrator = _search(output, forms, texts, settings, began, count, reserved)
        stored = _store(calibrator, texts, given)
        if given.text.task is not None:
            until = began + settings.max_seconds
            task = run_task(output, calibrator, given.text.task, questions, until)
        if settings.compare_policies:
            policies = _compare_policies(output, calibrator, began)
    except signals.Stopped:
        kept = f"{stored} was stored" if isinstance(stored, Path) else "nothing was stored"
        output.note(f"interrupted: {kept}")
        raise
    finally:
        signals.exit_at_once()
    command = calibrate_command(name, given.loading)
    command += "" if data is None else f" --data {shlex.quote(str(data))}"
    report = Report(title, form, command, task, policies)
    _finish(output, report, calibrator, given, stored)


def _questions(task: Path | None) -> "Sequence[Question]":
    """The questions of a task, read before the slow loading of the model."""
    if task is None:
        return ()
    from d3cli.evals.tasks import read_task

    return read_task(task)


def search_settings(output: Output, given: SearchOptions) -> "CalibrationSettings":
    """The settings of the search, checked before the slow loading of the model."""
    target, seconds = parse_target(given.target_drop), parse_duration(given.max_time)
    with output.progress.waiting("loading"):
        output.quiet_libraries()
        import_libraries()
        from d3cli.calibrate.settings import CalibrationSettings

        return CalibrationSettings(
            target_drop=target,
            units=given.units.value,
            order=given.order.value,
            confidence=given.confidence,
            reply_tokens=given.reply_tokens or REPLY_TOKENS,
            seed=given.seed,
            max_seconds=seconds,
            replies=given.replies,
            compare_policies=given.compare_policies,
        )


def _search(
    output: Output,
    forms: "ModelForms",
    texts: list["Document"],
    settings: "CalibrationSettings",
    began: float,
    count: int | None,
    reserved: float,
) -> "Calibrator":
    from d3cli.calibrate.budget import in_words
    from d3cli.calibrate.calibrator import Calibrator

    note_busy(output)
    with output.progress.waiting("measuring the model's pace"):
        calibrator = Calibrator(
            forms, texts, settings, began, all_documents=count is not None, reserved=reserved
        )
        plan = calibrator.prepare()
    used = [*plan.search, *plan.unseen]
    output.note(
        f"text: {len(used)} documents, {sum(len(d.response_ids) for d in used):,} response tokens; "
        "one half to search, one to test"
    )
    output.note(
        f"this takes up to {in_words(plan.estimate)}"
        + (f"; to save time, {' and '.join(plan.left_out)}" if plan.left_out else "")
    )

    def steps() -> Iterator[tuple[str, float]]:
        for progress in calibrator:
            signals.check()
            yield progress.doing, progress.share

    output.progress.follow(steps())
    if (final := calibrator.plan) is not plan:
        output.note(f"that left time for a second search: {_more_in(final, plan)}")
    return calibrator


def note_busy(output: Output) -> None:
    """Says if other programs disturb the times."""
    from d3cli.kernels.threads import machine_is_busy

    if machine_is_busy():
        output.note(
            "other programs use this machine: the times that decide may be wrong; on a quiet one, "
            "calibrate again"
        )


def _more_in(final: "Budget", first: "Budget") -> str:
    """What a second search looked at beyond the first."""
    found = []
    if final.greedy > first.greedy:
        found.append("the order is greedy")
    if final.by_prompt > first.by_prompt:
        found.append("each prompt's own order is searched as well")
    if len(final.kinds) > len(first.kinds):
        found.append(f"{final.kinds[-1]}s are searched as well")
    if len(final.search) > len(first.search):
        found.append(f"{len(final.search) + len(final.unseen)} documents are used")
    return " and ".join(found)


def _store(
    calibrator: "Calibrator", texts: list["Document"], given: CalibrateSettings
) -> Path | StoreError | None:
    """Stores the result, before anything else can fail: the file, or why it could not be written.

    Returns:
        None if nothing was chosen.
    """
    from d3cli.calibrate.record import make_record

    outcome, data = calibrator.outcome, given.text.data
    if outcome.chosen is None:
        return None
    source = str(data) if data else "self-replies" if given.text.self_replies else "built-in"
    key = calibrator.forms.key(outcome.chosen.candidate.quantization)
    assert key is not None
    record = make_record(outcome, calibrator.settings, source, texts)
    try:
        return save(key, record, chosen=bool(calibrator.forms.others))
    except StoreError as error:
        return error


def _compare_policies(output: Output, calibrator: "Calibrator", began: float) -> "ComparedPolicies":
    from d3cli.calibrate.policies import PolicyComparison

    settings = calibrator.settings
    comparison = PolicyComparison(
        calibrator.forms,
        settings,
        calibrator.outcome,
        calibrator.plan.unseen,
        began + settings.max_seconds,
    )

    def steps() -> Iterator[tuple[str, float]]:
        for progress in comparison:
            signals.check()
            yield progress.doing, progress.share

    output.progress.follow(steps())
    return comparison.found


def _finish(
    output: Output,
    report: Report,
    calibrator: "Calibrator",
    given: CalibrateSettings,
    stored: Path | StoreError | None,
) -> None:
    """Reports the result, and raises what kept it from being stored."""
    outcome, settings = calibrator.outcome, calibrator.settings
    if not isinstance(stored, Path):
        write_report(output, outcome, settings, report, None)
        if stored is not None:
            raise stored
        raise TargetNotMetError(
            (
                "nothing was stored: no schedule that saves 2% of the time stays within "
                f"+{100 * settings.target_drop:g}% perplexity (",
                *outcome.why_not,
                ")",
            ),
            _what_instead(outcome, report.command),
        )
    assert outcome.chosen is not None
    key = calibrator.forms.key(outcome.chosen.candidate.quantization)
    assert key is not None
    try:
        write_report(output, outcome, settings, report, stored)
    finally:  # it is stored even if the report cannot be written
        output.note(f"stored: {stored}; {_from_now_on(calibrator.forms, key, given.loading)}")


def _from_now_on(forms: "ModelForms", key: ModelKey, loading: ModelOptions) -> str:
    """When the stored calibration is used."""
    if not forms.others or key.quantization is None:
        return f"--alpha auto, the default, now uses it{_with_form(key, loading)}"
    words = f"from now on, this model is loaded in {key.quantization}"
    return words if forms.why_not_as_stored else f"{words}; --quantization none undoes that"


def _with_form(key: ModelKey, loading: ModelOptions) -> str:
    """The options without which the model would be loaded in another form than this one."""
    stored = calibrations_of(key.model)
    choice = None if stored is None else stored.choice
    if key.form == choice:
        return ""
    options = []
    if loading.dtype is not DtypeName.auto:
        options.append(f"--dtype {loading.dtype}")
    if key.quantization is not None or choice is not None:
        options.append(f"--quantization {key.quantization or 'none'}")
    return " with " * bool(options) + " ".join(options)


def _what_instead(outcome: "Outcome", command: str) -> Words:
    """What to do where nothing was found."""
    found: list[str | Setting] = []
    nearest = outcome.nearest
    if nearest is not None and nearest.target_drop is not None:
        candidate, drop = nearest.tried.candidate, nearest.tried.drop.value
        form = "" if candidate.quantization is None else f" in {candidate.quantization}"
        found.append(
            f"the smallest drop that saves anything is {signed_percent(drop)}{form} for "
            f"{candidate.byte_ratio:.2f}× bytes, which this may accept: "
            f"{accepting(nearest, command)}"
        )
    for one in outcome.alternatives:
        found += ["; " * bool(found), "without depth decay, ", one.setting]
        found.append(f" reads {one.byte_ratio:.1f}× fewer bytes per token")
    return found or ("raise ", Setting("target_drop"), ", or use more ", Setting("data"))
