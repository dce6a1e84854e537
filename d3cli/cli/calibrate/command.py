"""``d3 calibrate``: the fastest depth schedule within a quality target, tested and stored."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3cli.base.errors import CalibrationError, Setting, StoreError, TargetNotMetError, UsageError
from d3cli.base.settings import default_model
from d3cli.cli import signals
from d3cli.cli.calibrate.options import (
    DOCUMENTS,
    CalibrateSettings,
    Format,
    RemoveSettings,
    SearchOptions,
    ShowSettings,
)
from d3cli.cli.calibrate.report import SCHEMA, as_json, csv_rows, facts, plot
from d3cli.cli.calibrate.stored import as_json as stored_as_json
from d3cli.cli.calibrate.stored import describe, with_reasons
from d3cli.cli.command_line import command, command_group
from d3cli.cli.output import Output
from d3cli.cli.request import load
from d3cli.depth.calibration_store import (
    StoredFile,
    all_calibrations,
    calibrations_of,
    check_writable,
    remove,
    save,
)
from d3cli.files.names import find_local, model_identity

if TYPE_CHECKING:
    from d3cli.calibrate.calibrator import Calibrator
    from d3cli.calibrate.result import CalibrationSettings
    from d3cli.calibrate.texts import Sample
    from d3cli.model.model import LoadedModel
    from d3cli.scoring.documents import Document

REPLY_TOKENS = 256

calibrate_app = command_group()


@calibrate_app.callback()
@command(CalibrateSettings)
def calibrate(settings: CalibrateSettings) -> int:
    """Find the fastest depth schedule within a quality target, and store it.

    One half of the text is searched; the other half tests what was found. From then on `--alpha
    auto`, the default everywhere, uses the stored schedule for this model.

    Examples:
    - `d3 calibrate`

    - `d3 calibrate qwen-3-4b --target-drop 2% --max-time 30m`

    - `d3 calibrate llama-3-8b --quantization bnb-4bit --data notes.txt`
    """
    output = Output()
    form = _form(settings.form, settings.as_json)
    if settings.show and settings.remove:
        raise UsageError("--show and --remove exclude each other", "give one of them")
    if settings.show:
        _show(output, settings.model, form)
    elif settings.remove:
        _remove(output, _named(settings.model))
    else:
        _calibrate(output, settings, form)
    return 0


@calibrate_app.command("show")
@command(ShowSettings)
def show_stored(settings: ShowSettings) -> int:
    """Show what is stored for MODEL, or for all models."""
    _show(Output(), settings.model, _form(settings.form, settings.as_json))
    return 0


@calibrate_app.command("remove")
@command(RemoveSettings)
def remove_stored(settings: RemoveSettings) -> int:
    """Remove what is stored for MODEL, or for the default model."""
    _remove(Output(), _named(settings.model))
    return 0


def _form(form: Format, as_json: bool) -> Format:
    if as_json and form is Format.csv:
        raise UsageError("--json and -o csv exclude each other", "give one of them")
    return Format.json if as_json else form


def _named(model: str | None) -> str:
    return default_model() if model is None else model


def _calibrate(output: Output, given: CalibrateSettings, form: Format) -> None:
    settings = _search_settings(output, given.search)
    from d3cli.calibrate.texts import read_samples

    data = given.text.data
    samples = None if data is None else read_samples(data)
    loaded = load(
        output,
        _named(given.model),
        given.loading,
        prompt_tokens=2048,
        reply_tokens=1,  # what is scored is read as a prompt is
    )
    if given.search.reply_tokens is None:
        settings = replace(settings, reply_tokens=min(REPLY_TOKENS, loaded.context_length))
    began = time.monotonic()
    assert loaded.origin.key is not None  # what is not proven is refused where depth is to decay
    check_writable(loaded.origin.key)

    count = given.text.documents
    try:
        with output.progress.waiting("reading the text"):
            import scipy.stats  # noqa: F401 - slow, and no signal may raise in the middle of it

            from d3cli.calibrate.evaluator import check_memory_to_score

            texts = _documents(loaded, samples, count, settings.seed)
        signals.stop_in_order()
        if given.text.self_replies:
            texts = _write_replies(output, loaded, texts, settings, began)
        if not given.loading.force:
            check_memory_to_score(loaded, texts)
        calibrator = _search(output, loaded, texts, settings, began, count)
    except signals.Stopped:
        output.note("interrupted: nothing was stored")
        raise
    finally:
        signals.exit_at_once()
    source = str(data) if data else "self-replies" if given.text.self_replies else "built-in"
    _finish(output, loaded, calibrator, source, texts, form)


def _search_settings(output: Output, given: SearchOptions) -> "CalibrationSettings":
    """Checked before the slow part: a wrong number should not cost a model's loading."""
    target, seconds = parse_target(given.target_drop), parse_duration(given.max_time)
    with output.progress.waiting("loading"):
        output.quiet_libraries()
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


def _finish(
    output: Output,
    model: "LoadedModel",
    calibrator: "Calibrator",
    source: str,
    texts: list["Document"],
    form: Format,
) -> None:
    """Stores what was found, and reports it.

    Raises:
        TargetNotMetError: there is nothing to store.
        StoreError: it cannot be stored; it has been reported all the same.
    """
    outcome, settings = calibrator.outcome, calibrator.settings
    if outcome.chosen is None:
        _report(output, model, calibrator, None, form)
        raise TargetNotMetError(
            (
                "nothing was stored: no schedule that saves 2% of the bytes stays within "
                f"+{100 * settings.target_drop:g}% perplexity; ",
                *outcome.why_not,
            ),
            ("raise ", Setting("target_drop"), " or use more ", Setting("data")),
        )
    try:
        assert model.origin.key is not None
        stored = save(model.origin.key, outcome.record(settings, source, texts, model))
    except StoreError:
        _report(output, model, calibrator, None, form)
        raise
    try:
        _report(output, model, calibrator, stored, form)
    finally:  # whether or not the report could be written
        output.note(f"stored: {stored}; --alpha auto, the default, now uses it")


def parse_target(text: str) -> float:
    """``--target-drop``: "1%", or a fraction such as "0.01".

    Raises:
        UsageError: neither, or outside (0, 100%].
    """
    percent = text.strip().endswith("%")
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        raise UsageError(f'--target-drop is "{text}"', "give a percentage: 1%") from None
    if not math.isfinite(number):
        raise UsageError(f'--target-drop is "{text}"', "it lies above 0% and at most at 100%")
    if not percent and number >= 1:
        raise UsageError(
            f'--target-drop is "{text}", which would be {100 * number:g}%',
            f"write {number:g}% for {number:g} percent",
        )
    target = number / 100 if percent else number
    if not 0 < target <= 1:
        raise UsageError(f'--target-drop is "{text}"', "it lies above 0% and at most at 100%")
    return target


def parse_duration(text: str) -> float:
    """``--max-time`` in seconds: "90s", "10m", "1h30m".

    Raises:
        UsageError: anything else.
    """
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text.strip())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise UsageError(f'--max-time is "{text}"', "write 90s, 10m or 1h")
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if not 0 < seconds < 1e7:
        raise UsageError(f'--max-time is "{text}"', "give from a second to a few days")
    return seconds


def _documents(
    model: "LoadedModel",
    samples: Sequence["Sample"] | None,
    count: int | None,
    seed: int,
) -> list["Document"]:
    from d3cli.calibrate.texts import builtin_samples, choose, encode_samples

    own = builtin_samples(model) if samples is None else samples
    found = encode_samples(model, own)
    return choose(found, DOCUMENTS if count is None else count, seed)


def _write_replies(
    output: Output,
    model: "LoadedModel",
    prompts: Sequence["Document"],
    settings: "CalibrationSettings",
    began: float,
) -> list["Document"]:
    """The model's own replies, as many as half of the time allows.

    Raises:
        CalibrationError: too few.
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
            f"the model wrote {len(found)} replies of two tokens or more in half of --max-time, "
            f"and {MIN_DOCUMENTS} are needed",
            "raise --max-time, or lower --reply-tokens",
        )
    if len(found) < len(prompts):
        output.note(f"replies: {len(found)} of {len(prompts)} were written in half of the time")
    return found


def _search(
    output: Output,
    model: "LoadedModel",
    texts: list["Document"],
    settings: "CalibrationSettings",
    began: float,
    count: int | None,
) -> "Calibrator":
    from d3cli.calibrate.budget import in_words
    from d3cli.calibrate.calibrator import Calibrator

    with output.progress.waiting("measuring this model's pace"):
        calibrator = Calibrator(model, texts, settings, began, all_documents=count is not None)
        plan = calibrator.prepare()
    used = [*plan.search, *plan.unseen]
    output.note(
        f"text: {len(used)} documents, {sum(len(d.response_ids) for d in used):,} response tokens; "
        "one half to search, one to test"
    )
    output.note(
        f"this takes about {in_words(plan.estimate)}"
        + (f"; for the sake of time, {plan.left_out}" if plan.left_out else "")
    )

    def steps() -> Iterator[tuple[str, float]]:
        for progress in calibrator:
            signals.check()
            yield progress.doing, progress.share

    output.progress.follow(steps())
    return calibrator


def _report(
    output: Output,
    model: "LoadedModel",
    calibrator: "Calibrator",
    stored: Path | None,
    form: Format,
) -> None:
    outcome, settings = calibrator.outcome, calibrator.settings
    if form is Format.json:
        output.json(as_json(outcome, settings, model, stored))
        return
    if form is Format.csv:
        output.csv(csv_rows(outcome))
        return
    output.table(("calibration", model.name), facts(outcome, settings, model))
    picture = plot(outcome, settings, output.stdout_width)
    if picture:
        output.write("\n" + picture + "\n")


def _show(output: Output, model: str | None, form: Format) -> None:
    if form is Format.csv:
        raise UsageError("--show has no csv", "use -o table or -o json")
    stored: list[StoredFile]
    if model is None:
        stored = all_calibrations()
    else:
        one = calibrations_of(model_identity(model))
        stored = [] if one is None else [one]
    if model is not None and not stored:
        find_local(model)  # a wrong name is told
    if form is Format.json:
        found: list[dict[str, Any]] = [entry for file in stored for entry in stored_as_json(file)]
        output.json({"schema": SCHEMA, "calibrations": found})
        return
    if not stored:
        output.note(f"nothing is stored{'' if model is None else f' for {model}'}")
    for file in stored:
        if file.problem:
            output.note(file.problem)
        for entry, reason in with_reasons(file):
            output.table(("calibration", ""), describe(entry, reason))
            output.write("\n")


def _remove(output: Output, model: str) -> None:
    if remove(model_identity(model)):
        output.note(f"removed what was stored for {model}")
    else:
        find_local(model)  # a wrong name is told
        output.note(f"nothing was stored for {model}")
