"""One run of ``d3 calibrate``: read the text, search, store the result and report it."""

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from d3cli.base.amounts import signed_percent
from d3cli.base.errors import CalibrationError, Setting, StoreError, TargetNotMetError, Words
from d3cli.cli import signals
from d3cli.cli.calibrate.options import (
    DOCUMENTS,
    CalibrateSettings,
    Format,
    SearchOptions,
)
from d3cli.cli.calibrate.parse import parse_duration, parse_target
from d3cli.cli.calibrate.report import accepting, write_report
from d3cli.cli.depth import calibrate_command
from d3cli.cli.model_options import DtypeName, ModelOptions, QuantizationName
from d3cli.cli.output import Output
from d3cli.cli.request import load
from d3cli.depth.calibration_record import ModelKey
from d3cli.depth.calibration_store import check_writable, save
from d3cli.kernels.lean_imports import import_libraries

if TYPE_CHECKING:
    from d3cli.calibrate.budget import Budget
    from d3cli.calibrate.calibrator import Calibrator
    from d3cli.calibrate.forms import ModelForms
    from d3cli.calibrate.result import CalibrationSettings, Outcome
    from d3cli.calibrate.texts import Sample
    from d3cli.kernels.quantization import Quantization
    from d3cli.model.load import CheckText, LoadOptions
    from d3cli.model.model import LoadedModel
    from d3cli.scoring.documents import Document

REPLY_TOKENS = 256


def run_calibration(output: Output, name: str, given: CalibrateSettings, form: Format) -> None:
    """Calibrates the model called `name`.

    Raises:
        TargetNotMetError: no schedule is worth storing; the report has been written.
        StoreError: the result cannot be stored; the report has been written.
    """
    settings = _search_settings(output, given.search)
    from d3cli.calibrate.texts import read_samples

    data, count = given.text.data, given.text.documents
    samples = None if data is None else read_samples(data)
    # Documents are scored in one pass each, so for memory they are prompts.
    check_text = _template_check(samples)
    forms = _load_forms(output, name, given.loading, check_text)
    model, title = forms.model, forms.model.name
    if given.search.reply_tokens is None:
        settings = replace(settings, reply_tokens=min(REPLY_TOKENS, model.context_length))
    began = time.monotonic()
    assert model.origin.key is not None  # a model without one cannot skip layers: refused below
    check_writable(model.origin.key)
    try:
        with output.progress.waiting("reading the text"):
            # scipy takes long to import; a signal must not raise an exception inside it.
            import scipy.stats  # noqa: F401

            from d3cli.calibrate.evaluator import check_memory_to_score

            texts = _documents(model, samples, count, settings.seed)
        signals.stop_in_order()
        if given.text.self_replies:
            texts = _write_replies(output, model, texts, settings, began)
        if not given.loading.force:
            check_memory_to_score(model, texts)
        del model  # the calibrator lets go of it to load it in other forms
        calibrator = _search(output, forms, texts, settings, began, count)
    except signals.Stopped:
        output.note("interrupted: nothing was stored")
        raise
    finally:
        signals.exit_at_once()
    source = str(data) if data else "self-replies" if given.text.self_replies else "built-in"
    command = calibrate_command(name, given.loading)
    command += "" if data is None else f" --data {shlex.quote(str(data))}"
    _finish(output, title, calibrator, source, texts, form, command)


def _load_forms(
    output: Output, name: str, loading: ModelOptions, check_text: "CheckText | None"
) -> "ModelForms":
    """Loads the model, and says which forms of its weights are to be tried.

    With --quantization, that is the only form.
    """
    from d3cli.calibrate.alternatives import forms_to_try
    from d3cli.calibrate.forms import ModelForms
    from d3cli.model.load import load_model

    lengths: LoadOptions = {"prompt_tokens": 2048, "reply_tokens": 1}
    if loading.quantization is not QuantizationName.auto:
        return ModelForms(load(output, name, loading, check_text, **lengths))
    as_stored = replace(loading, quantization=QuantizationName.none)
    first = load(output, name, as_stored, check_text, **lengths)
    others = forms_to_try(first) if loading.dtype in (DtypeName.auto, DtypeName.bfloat16) else []

    def load_form(quantization: "Quantization | None") -> "LoadedModel":
        options: LoadOptions = {**as_stored.load_options, **lengths, "quantization": quantization}
        return load_model(name, offline=loading.offline, revision=loading.revision, **options)

    if others:
        output.note(f"weights: tried as stored, and in {' and '.join(others)}")
    return ModelForms(first, load_form, others)


def _search_settings(output: Output, given: SearchOptions) -> "CalibrationSettings":
    """The settings of the search, checked before the slow loading of the model."""
    target, seconds = parse_target(given.target_drop), parse_duration(given.max_time)
    with output.progress.waiting("loading"):
        output.quiet_libraries()
        import_libraries()
        from d3cli.calibrate.result import CalibrationSettings

        return CalibrationSettings(
            target_drop=target,
            units=given.units.value,
            order=given.order.value,
            confidence=given.confidence,
            reply_tokens=given.reply_tokens or REPLY_TOKENS,
            seed=given.seed,
            max_seconds=seconds,
            replies=given.replies,
        )


def _template_check(samples: Sequence["Sample"] | None) -> "CheckText | None":
    """Returns what refuses a chat template that cannot render the text; None if it needs none.

    The built-in text, which stands for None, consists of conversations.
    """
    from d3cli.text.chat_template import check_template

    if samples is None:
        return partial(check_template, roles=("user",))
    first = next((sample.messages for sample in samples if sample.messages), None)
    if first is None:
        return None
    return partial(check_template, roles=[message["role"] for message in first])


def _documents(
    model: "LoadedModel", samples: Sequence["Sample"] | None, count: int | None, seed: int
) -> list["Document"]:
    from d3cli.calibrate.texts import builtin_samples, choose, encode_samples

    found = encode_samples(model, builtin_samples(model) if samples is None else samples)
    return choose(found, DOCUMENTS if count is None else count, seed)


def _write_replies(
    output: Output,
    model: "LoadedModel",
    prompts: Sequence["Document"],
    settings: "CalibrationSettings",
    began: float,
) -> list["Document"]:
    """The model's own replies to the prompts, as many as it writes in half of the time.

    Raises:
        CalibrationError: there are too few.
    """
    from d3cli.calibrate.own_replies import self_replies
    from d3cli.calibrate.texts import MIN_DOCUMENTS

    found: list[Document] = []

    def steps() -> Iterator[tuple[str, float]]:
        replies = self_replies(model, prompts, settings.reply_tokens, settings.seed)
        for number, reply in enumerate(replies, start=1):
            found.append(reply)
            yield f"the model's own replies: {number}", number / len(prompts)
            if time.monotonic() - began > settings.max_seconds / 2:
                return

    output.progress.follow(steps())
    if len(found) < MIN_DOCUMENTS:
        raise CalibrationError(
            f"the model wrote {len(found)} replies of two or more tokens in half of --max-time, "
            f"but {MIN_DOCUMENTS} are needed",
            "raise --max-time or lower --reply-tokens",
        )
    if len(found) < len(prompts):
        output.note(f"replies: {len(found)} of {len(prompts)} were written in half of the time")
    return found


def _search(
    output: Output,
    forms: "ModelForms",
    texts: list["Document"],
    settings: "CalibrationSettings",
    began: float,
    count: int | None,
) -> "Calibrator":
    from d3cli.calibrate.budget import in_words
    from d3cli.calibrate.calibrator import Calibrator

    with output.progress.waiting("measuring the model's pace"):
        calibrator = Calibrator(forms, texts, settings, began, all_documents=count is not None)
        plan = calibrator.prepare()
    used = [*plan.search, *plan.unseen]
    output.note(
        f"text: {len(used)} documents, {sum(len(d.response_ids) for d in used):,} response tokens; "
        "one half to search, one to test"
    )
    output.note(
        f"this takes up to {in_words(plan.estimate)}"
        + (f"; to save time, {plan.left_out}" if plan.left_out else "")
    )

    def steps() -> Iterator[tuple[str, float]]:
        for progress in calibrator:
            signals.check()
            yield progress.doing, progress.share

    output.progress.follow(steps())
    if (final := calibrator.plan) is not plan:
        output.note(f"that left time for a second search: {_more_in(final, plan)}")
    return calibrator


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


def _finish(
    output: Output,
    title: str,
    calibrator: "Calibrator",
    source: str,
    texts: list["Document"],
    form: Format,
    command: str,
) -> None:
    """Stores the result and reports it."""
    outcome, settings = calibrator.outcome, calibrator.settings
    if outcome.chosen is None:
        write_report(output, outcome, settings, title, None, form, command)
        raise TargetNotMetError(
            (
                "nothing was stored: no schedule that saves 2% of the time stays within "
                f"+{100 * settings.target_drop:g}% perplexity (",
                *outcome.why_not,
                ")",
            ),
            _what_instead(outcome, command),
        )
    try:
        key = calibrator.forms.key(outcome.chosen.candidate.quantization)
        assert key is not None
        record = outcome.record(settings, source, texts)
        stored = save(key, record, chosen=bool(calibrator.forms.others))
    except StoreError:
        write_report(output, outcome, settings, title, None, form, command)
        raise
    try:
        write_report(output, outcome, settings, title, stored, form, command)
    finally:  # it is stored even if the report cannot be written
        output.note(f"stored: {stored}; {_from_now_on(calibrator, key)}")


def _from_now_on(calibrator: "Calibrator", key: ModelKey) -> str:
    """When the stored calibration is used."""
    if not calibrator.forms.others or key.quantization is None:
        return "--alpha auto, the default, now uses it"
    return (
        f"from now on, this model is loaded in {key.quantization}; --quantization none undoes that"
    )


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
