"""Stored calibrations: in a cell of a table, in full and as JSON; shown and removed."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from d3cli.base.amounts import signed_percent
from d3cli.base.errors import D3Error, UsageError
from d3cli.cli.calibrate.options import Format
from d3cli.cli.output import Output
from d3cli.depth.calibration_file import StoredFile
from d3cli.depth.calibration_record import Calibration, Entry, form_in_words
from d3cli.depth.calibration_store import (
    Stale,
    all_calibrations,
    calibrations_of,
    find,
    find_drafts,
    remove,
)
from d3cli.depth.draft_record import DraftCalibration, DraftEntry
from d3cli.depth.prompt_order import order_in_words
from d3cli.files.names import find_local, find_on_disk, model_identity

SCHEMA = 1


def with_reasons(stored: StoredFile) -> Iterator[tuple[Entry | DraftEntry, str]]:
    """All that a file holds, and why it is not used now; an empty reason if it is used."""
    entries: list[Entry | DraftEntry] = [*stored.entries, *stored.drafts]
    for entry in entries:
        try:
            files = find_on_disk(entry.key.model)
            if files is None and entry.key.revision:  # d3 may have loaded it by its revision alone
                files = find_on_disk(entry.key.model, entry.key.revision)
            if files is None:
                yield entry, "the model is not on disk"
                continue
            key = replace(entry.key, fingerprint=files.fingerprint(), revision=files.revision)
            found = find(key) if isinstance(entry, Entry) else find_drafts(key)
        except D3Error as error:  # a directory that is gone or damaged
            yield entry, error.message
            continue
        yield entry, found.reason if isinstance(found, Stale) else ""


def summary(stored: StoredFile) -> str:
    """All that a file holds in one cell."""
    if stored.problem:
        return "unusable"
    return "; ".join(
        _brief(entry) + ", stale" * bool(reason) for entry, reason in with_reasons(stored)
    )


def _brief(entry: Entry | DraftEntry) -> str:
    form = form_in_words(entry.key.form)
    if isinstance(entry, DraftEntry):
        drafts = entry.drafts
        return f"drafts {f'{drafts.gain:.2f}×' if drafts.pays else 'do not pay'} ({form})"
    found = entry.calibration
    return (
        f"{signed_percent(found.unseen.drop)}, {found.unseen.byte_ratio:.2f}×, "
        f"alpha {found.schedule.alpha:g} ({form})"
    )


def describe(entry: Entry | DraftEntry, reason: str = "") -> list[tuple[str, str]]:
    """What was found for one form of a model in full, as rows of a name and a value."""
    key = entry.key
    found = entry.calibration if isinstance(entry, Entry) else entry.drafts
    schedule = found.schedule
    settings = [(name, str(value)) for name, value in found.settings.items() if value is not None]
    return [
        ("model", key.model),
        ("weights", form_in_words(key.form)),
        *([("revision", key.revision)] if key.revision else []),
        *([("not used", reason)] if reason else []),
        ("schedule", schedule.in_words()),
        ("core layers", f"{schedule.core_first} first, {schedule.core_last} last"),
        ("skip order", order_in_words(schedule)),
        *(_measured(found) if isinstance(found, Calibration) else _of_drafts(found)),
        *settings,
        ("data hash", found.data_hash),
        ("made", f"{found.date}, by d3 {found.version}"),
    ]


def _of_drafts(drafts: DraftCalibration) -> list[tuple[str, str]]:
    confidence = f"with {100 * drafts.confidence:g}% confidence"
    return [
        ("for", "drafts of lossless replies" + ("" if drafts.pays else ": they do not pay")),
        (
            "agreement",
            f"{drafts.agreement:.1%} of {drafts.tokens:,} tokens in {drafts.documents:,} unseen "
            f"replies, at least {drafts.agreement_low:.1%} {confidence}",
        ),
        ("a drafted token", f"{drafts.cost:.2f} of a step at full depth, there"),
        ("length", f"{drafts.length} tokens a draft"),
        (
            "expected gain",
            f"{drafts.gain:.2f}× the speed of full depth, at least {drafts.gain_low:.2f}×",
        ),
    ]


def _measured(calibration: Calibration) -> list[tuple[str, str]]:
    unseen = calibration.unseen
    low, high = unseen.drop_interval
    return [
        ("target", f"at most {signed_percent(calibration.target_drop)} perplexity"),
        (
            "measured",
            f"{signed_percent(unseen.drop)} on {unseen.documents:,} unseen documents; at least "
            f"{signed_percent(low)} and at most {signed_percent(high)}, each with "
            f"{100 * calibration.confidence:g}% confidence",
        ),
        ("KL", f"{unseen.kl:.4g} nats per token"),
        ("same top choice", f"{unseen.same_top:.1%}"),
        ("ratios", f"layers {unseen.layer_ratio:.2f}×, bytes {unseen.byte_ratio:.2f}×"),
        *_compared(calibration),
    ]


def _compared(calibration: Calibration) -> Iterator[tuple[str, str]]:
    """What it was compared with, and the best of each sort; d3 0.1.0 stored neither."""
    if calibration.against is None:
        return
    against = f"full depth in {form_in_words(calibration.against)}"
    if calibration.why_not_as_stored is not None:
        against += f"; what nesting costs is outside: as stored, {calibration.why_not_as_stored}"
    yield "compared with", against
    for one in calibration.rivals:
        low, high = one.drop_interval
        yield (
            f"best {one.sort}",
            f"{form_in_words(one.form)}, {one.schedule}: {signed_percent(one.drop)} "
            f"({signed_percent(low)} to {signed_percent(high)}) perplexity, {one.speed:.2f}× as "
            f"fast, bytes {one.byte_ratio:.2f}×, net of repair",
        )


def as_json(stored: StoredFile) -> list[dict[str, Any]]:
    """One object a calibration; for a file that cannot be used, one with its problem."""
    place = {"model": stored.model, "file": str(stored.path)}
    if stored.problem:
        return [place | {"problem": stored.problem}]
    return [
        place
        | {"for": "perplexity" if isinstance(entry, Entry) else "lossless"}
        | {"problem": reason or None}
        | entry.to_json()
        for entry, reason in with_reasons(stored)
    ]


def show_stored(output: Output, model: str | None, form: Format) -> None:
    """Writes what is stored for a model, or for all models.

    Raises:
        UnknownModelError: nothing is stored, and no model has that name.
    """
    if form is Format.csv:
        raise UsageError("what is stored cannot be shown as csv", "use -o table or -o json")
    stored: list[StoredFile]
    if model is None:
        stored = all_calibrations()
    else:
        one = calibrations_of(model_identity(model))
        stored = [] if one is None else [one]
    if model is not None and not stored:
        find_local(model)  # refuses an unknown name
    if form is Format.json:
        found: list[dict[str, Any]] = [entry for file in stored for entry in as_json(file)]
        output.json({"schema": SCHEMA, "calibrations": found})
        return
    if not stored:
        output.note(f"nothing is stored{'' if model is None else f' for {model}'}")
    for file in stored:
        if file.problem:
            output.note(file.problem)
        for entry, reason in with_reasons(file):
            title = "calibration" if isinstance(entry, Entry) else "drafts"
            output.table((title, ""), describe(entry, reason))
            output.write("\n")


def remove_stored(output: Output, model: str) -> None:
    """Removes what is stored for a model.

    Raises:
        UnknownModelError: nothing is stored, and no model has that name.
    """
    if remove(model_identity(model)):
        output.note(f"removed what was stored for {model}")
    else:
        find_local(model)  # refuses an unknown name
        output.note(f"nothing was stored for {model}")
