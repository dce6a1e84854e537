"""One run of ``d3 calibrate --for lossless``: writes replies, searches, stores and reports."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3cli.base.errors import StoreError, TargetNotMetError, UsageError
from d3cli.cli import signals
from d3cli.cli.calibrate.loading import LENGTHS
from d3cli.cli.calibrate.options import CalibrateSettings, Format
from d3cli.cli.calibrate.run import note_busy, search_settings
from d3cli.cli.calibrate.text import read_documents, template_check, write_replies
from d3cli.cli.loading import load
from d3cli.cli.output import Output
from d3cli.depth.calibration_record import form_in_words
from d3cli.depth.calibration_store import check_writable, save_drafts
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import order_in_words

if TYPE_CHECKING:
    from d3cli.calibrate.draft_search import DraftOutcome, DraftSearch, DraftTried
    from d3cli.calibrate.settings import CalibrationSettings
    from d3cli.model.model import LoadedModel
    from d3cli.scoring.documents import Document

SCHEMA = 1
# Replies unless --documents says otherwise, and their length unless --reply-tokens does.
DOCUMENTS, REPLY_TOKENS = 48, 64
WITHOUT_EFFECT = (
    *("target_drop", "units", "order", "replies", "self_replies", "task", "compare_policies"),
)


def run_draft_calibration(
    output: Output, name: str, given: CalibrateSettings, form: Format
) -> None:
    """Finds what drafts the lossless replies of the model called `name`, at less depth.

    Raises:
        TargetNotMetError: no draft pays; that is stored, and the report has been written.
        StoreError: the result cannot be stored; the report has been written.
    """
    for option in WITHOUT_EFFECT:
        if option in given.typed:
            raise UsageError(
                f"{given.typed[option]} has no effect on --for lossless", "leave it out"
            )
    settings = search_settings(output, given.search)
    settings = replace(settings, reply_tokens=given.search.reply_tokens or REPLY_TOKENS)
    from d3cli.calibrate.texts import read_samples

    data, began = given.text.data, time.monotonic()
    samples = None if data is None else read_samples(data)
    model = load(output, name, given.loading, template_check(samples), **LENGTHS)
    if (key := model.origin.key) is not None:  # else there is nothing to drop: refused below
        check_writable(key)
    try:
        with output.progress.waiting("reading the text"):
            # scipy takes long to import; a signal must not raise an exception inside it.
            import scipy.stats  # noqa: F401

            count = given.text.documents or DOCUMENTS
            prompts = read_documents(model, samples, count, settings.seed)
        signals.stop_in_order()
        search, replies = _search(
            output, model, prompts, settings, began, force=given.loading.force
        )
    except signals.Stopped:
        output.note("interrupted: nothing was stored")
        raise
    finally:
        signals.exit_at_once()
    _finish(output, search, replies, settings, str(data) if data else "built-in", form)


def _search(
    output: Output,
    model: "LoadedModel",
    prompts: list["Document"],
    settings: "CalibrationSettings",
    began: float,
    *,
    force: bool,
) -> "tuple[DraftSearch, list[Document]]":
    from d3cli.calibrate.draft_search import DraftSearch
    from d3cli.calibrate.evaluator import check_memory_to_score

    note_busy(output)
    # Refuses a model that can drop nothing before it writes replies.
    search = DraftSearch(model, [], settings.seed, settings.confidence)
    # Most lossless replies are greedy, and their drafts are accepted where the choices agree. A
    # loop flatters a draft here as it does in use; short replies leave little room for one.
    replies = write_replies(output, model, prompts, settings, began, temperature=0.0)
    if not force:
        check_memory_to_score(model, replies)
    tokens = sum(len(reply.response_ids) for reply in replies)
    output.note(
        f"text: {len(replies)} replies of the model's own, {tokens:,} tokens; one half to search, "
        "one to test"
    )
    search.documents = replies

    def steps() -> Iterator[tuple[str, float]]:
        for progress in search:
            signals.check()
            yield progress.doing, progress.share

    output.progress.follow(steps())
    return search, replies


def _finish(
    output: Output,
    search: "DraftSearch",
    replies: list["Document"],
    settings: "CalibrationSettings",
    source: str,
    form: Format,
) -> None:
    """Stores the result, also if no draft pays, and reports it."""
    from d3cli.calibrate.record import make_draft_record

    model, outcome = search.model, search.outcome
    assert model.origin.key is not None
    record = make_draft_record(outcome, settings, source, replies)
    try:
        stored = save_drafts(model.origin.key, record)
    except StoreError:
        _write_report(output, model, outcome, settings, None, form)
        raise
    try:
        _write_report(output, model, outcome, settings, stored, form)
    finally:  # it is stored even if the report cannot be written
        use = "--lossless now drafts by it" if record.pays else "--lossless drafts without it"
        output.note(f"stored: {stored}; {use}")
    if not record.pays:
        raise TargetNotMetError(
            "no draft of this model at less depth certainly pays, so --lossless leaves these out: "
            f"the best one promises {outcome.best.gain:.2f}× the speed, and at least "
            f"{outcome.gain_low:.2f}×",
            "--lossless lookup drafts from the text, --draft-model with a smaller model",
        )


def _write_report(
    output: Output,
    model: "LoadedModel",
    outcome: "DraftOutcome",
    settings: "CalibrationSettings",
    stored: Path | None,
    form: Format,
) -> None:
    if form is Format.json:
        output.json(_as_json(outcome, settings, stored))
    elif form is Format.csv:
        output.csv(_csv_rows(outcome))
    else:
        output.table(("drafts", model.name), list(_report_rows(model, outcome, settings)))


def _report_rows(
    model: "LoadedModel", outcome: "DraftOutcome", settings: "CalibrationSettings"
) -> Iterator[tuple[str, str]]:
    best, schedule = outcome.best, outcome.best.candidate.schedule
    assert model.origin.key is not None
    yield "weights", form_in_words(model.origin.key.form)
    yield "drafts drop", f"{len(schedule.skip_order)} units, {schedule.in_words()}"
    yield "units dropped", order_in_words(schedule)
    yield "  order", best.candidate.order
    yield (
        "on unseen replies",
        f"same choice as full depth at {best.agreement:.1%} of the tokens, at least "
        f"{outcome.agreement_low:.1%} with {100 * settings.confidence:g}% confidence; "
        f"{outcome.documents} replies, {outcome.tokens:,} tokens",
    )
    yield "a drafted token", f"{best.candidate.cost:.2f} of a step at full depth"
    costs = outcome.verification
    shown = [drafted for drafted in (1, 3, 7, len(costs)) if drafted <= len(costs)]
    words = ", ".join(f"{costs[drafted - 1]:.2f} for {drafted}" for drafted in shown)
    yield "verifying", f"in steps at full depth: {words} drafted tokens"
    yield "length", f"{best.length} tokens a draft" if best.length else "no draft pays"
    yield (
        "expected gain",
        f"{best.gain:.2f}× the speed of full depth, at least {outcome.gain_low:.2f}×; against "
        "drafts by lookup, nothing is promised",
    )
    for one in outcome.tried:
        yield f"  {len(one.candidate.schedule.skip_order)} units", _tried_in_words(one)
    yield "took", f"{outcome.seconds:.0f} s after the replies"


def _tried_in_words(one: "DraftTried") -> str:
    return (
        f"{one.candidate.order}: agreement {one.agreement:.1%}, cost {one.candidate.cost:.2f}, "
        f"length {one.length}, {one.gain:.2f}×"
    )


def _as_json(
    outcome: "DraftOutcome", settings: "CalibrationSettings", stored: Path | None
) -> dict[str, Any]:
    best = outcome.best
    return {
        "schema": SCHEMA,
        "for": "lossless",
        "schedule": best.candidate.schedule.to_json() | {"source": Source.CALIBRATION},
        "stored": None if stored is None else str(stored),
        "confidence": settings.confidence,
        "unseen": {
            "documents": outcome.documents,
            "tokens": outcome.tokens,
            **_figures(best),
            "agreement_low": outcome.agreement_low,
            "gain_low": outcome.gain_low,
        },
        "tried": [
            _figures(one) | {"schedule": one.candidate.schedule.to_json()} for one in outcome.tried
        ],
        "verification": list(outcome.verification),
        "step_seconds": outcome.step_seconds,
        "settings": {
            "reply_tokens": settings.reply_tokens,
            "seed": settings.seed,
            "max_seconds": settings.max_seconds,
        },
        "seconds": outcome.seconds,
    }


def _figures(one: "DraftTried") -> dict[str, Any]:
    return {
        "order": one.candidate.order,
        "agreement": one.agreement,
        "cost": one.candidate.cost,
        "length": one.length,
        "gain": one.gain,
    }


def _csv_rows(outcome: "DraftOutcome") -> Iterator[tuple[object, ...]]:
    """A header, then every candidate that was tried on the search half."""
    yield ("order", "skip_order", "agreement", "cost", "length", "gain", "chosen")
    chosen = outcome.best.candidate.schedule
    for one in outcome.tried:
        schedule = one.candidate.schedule
        yield (
            *(one.candidate.order, " ".join(schedule.skip_order)),
            *(one.agreement, one.candidate.cost, one.length, one.gain),
            int(schedule == chosen),
        )
