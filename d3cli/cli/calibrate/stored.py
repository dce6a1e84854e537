"""How stored calibrations read: in a cell of a table, in full, and as JSON."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from d3cli.base.amounts import signed_percent
from d3cli.base.errors import D3Error
from d3cli.depth.calibration_record import Calibration, Entry
from d3cli.depth.calibration_store import Stale, StoredFile, find
from d3cli.files.fingerprint import fingerprint
from d3cli.files.names import find_on_disk


def with_reasons(stored: StoredFile) -> Iterator[tuple[Entry, str]]:
    """Each calibration of a file, and why it would not be used now; empty where it would."""
    for entry in stored.entries:
        try:
            files = find_on_disk(entry.key.model)
            if files is None:
                yield entry, "the model is not on disk"
                continue
            sample = fingerprint(files.path)
            found = find(replace(entry.key, fingerprint=sample, revision=files.revision))
        except D3Error as error:  # a directory that is gone or damaged
            yield entry, error.message
            continue
        yield entry, found.reason if isinstance(found, Stale) else ""


def summary(stored: StoredFile) -> str:
    """All calibrations of a file in one cell."""
    if stored.problem:
        return "unusable"
    return "; ".join(
        _brief(entry) + ", stale" * bool(reason) for entry, reason in with_reasons(stored)
    )


def _brief(entry: Entry) -> str:
    found = entry.calibration
    return (
        f"{signed_percent(found.unseen.drop)}, {found.unseen.byte_ratio:.2f}×, "
        f"alpha {found.schedule.alpha:g} ({entry.key.form})"
    )


def describe(entry: Entry, reason: str = "") -> list[tuple[str, str]]:
    """One calibration in full, as rows of a name and a value."""
    key, calibration = entry.key, entry.calibration
    schedule = calibration.schedule
    settings = [
        (name, str(value)) for name, value in calibration.settings.items() if value is not None
    ]
    return [
        ("model", key.model),
        ("in", key.form),
        *([("revision", key.revision)] if key.revision else []),
        *([("not used", reason)] if reason else []),
        ("schedule", schedule.in_words()),
        ("core layers", f"{schedule.core_first} first, {schedule.core_last} last"),
        ("skip order", " ".join(schedule.skip_order)),
        *_measured(calibration),
        *settings,
        ("data", calibration.data_hash),
        ("made", f"{calibration.date}, by d3 {calibration.version}"),
    ]


def _measured(calibration: Calibration) -> list[tuple[str, str]]:
    unseen = calibration.unseen
    low, high = unseen.drop_interval
    return [
        ("asked", f"at most {signed_percent(calibration.target_drop)} perplexity"),
        (
            "measured",
            f"{signed_percent(unseen.drop)} on {unseen.documents:,} unseen documents; at least "
            f"{signed_percent(low)} and at most {signed_percent(high)}, each with "
            f"{100 * calibration.confidence:g}% confidence",
        ),
        ("KL", f"{unseen.kl:.4g} nats a token"),
        ("same top token", f"{unseen.same_top:.1%}"),
        ("ratios", f"layers {unseen.layer_ratio:.2f}×, bytes {unseen.byte_ratio:.2f}×"),
    ]


def as_json(stored: StoredFile) -> list[dict[str, Any]]:
    """One object a calibration; for a file that cannot be used, one with its problem."""
    place = {"model": stored.model, "file": str(stored.path)}
    if stored.problem:
        return [place | {"problem": stored.problem}]
    return [
        place | {"problem": reason or None} | entry.to_json()
        for entry, reason in with_reasons(stored)
    ]
