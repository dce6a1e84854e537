"""Calibrations on disk: one JSON file for each model. They are used while it is unchanged.

Readers take no lock, because a file is only ever replaced as a whole. Knows nothing of how a
calibration is made; no torch.
"""

import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from d3cli.base.atomic_files import replace_file
from d3cli.base.errors import StoreError
from d3cli.base.file_lock import file_lock
from d3cli.depth.calibration_file import (
    StoredFile,
    directory_of_calibrations,
    file_of,
    read_stored,
    stored_text,
)
from d3cli.depth.calibration_record import Calibration, Entry, ModelKey, form_in_words
from d3cli.depth.draft_record import DraftCalibration, DraftEntry

LOCK_SECONDS = 10.0  # a save takes milliseconds


@dataclass(frozen=True, slots=True)
class Stale:
    """A stored calibration that is not used.

    Attributes:
        reason: why, in words that follow a colon.
        remedy: what to do about it; empty if that is to calibrate again.
    """

    reason: str
    remedy: str = ""


def find(key: ModelKey) -> Calibration | Stale | None:
    """The calibration of exactly this model, or why the stored one is not used. None without one.

    A model on disk that was moved, renamed or copied keeps its calibration.

    Raises:
        StoreError: the file is damaged, or was written by a newer d3.
    """
    stored = calibrations_of(key.model)
    if stored is None or not stored.entries:
        return _find_moved(key)
    for entry in stored.entries:
        if entry.key.form == key.form:
            return _compare(entry, key)
    compared = [_compare(entry, key) for entry in stored.entries]
    if changed := [one for one in compared if isinstance(one, Stale)]:
        return changed[0]
    forms = " and ".join(form_in_words(entry.key.form) for entry in stored.entries)
    now = form_in_words(key.form)
    return Stale(f"it was made in {forms}, and the model now runs in {now}")


def find_drafts(key: ModelKey) -> DraftCalibration | Stale | None:
    """What drafts lossless replies of exactly this model, as `find` finds a calibration.

    None also if it was looked for in other forms of the weights only.

    Raises:
        StoreError: the file is damaged, or was written by a newer d3.
    """
    stored = calibrations_of(key.model)
    for entry in stored.drafts if stored is not None else ():
        if entry.key.form == key.form:
            return _why_stale(entry.key, entry.drafts.date, key) or entry.drafts
    moved = [
        entry.drafts
        for file in (_others_on_disk(key.model) if stored is None else ())
        for entry in file.drafts
        if replace(entry.key, model=key.model) == key
    ]
    return max(moved, key=lambda drafts: drafts.date, default=None)


def _find_moved(key: ModelKey) -> Calibration | None:
    """The calibration that was made for the same files under another path, the latest first."""
    found = [
        entry.calibration
        for stored in _others_on_disk(key.model)
        for entry in stored.entries
        if replace(entry.key, model=key.model) == key
    ]
    return max(found, key=lambda calibration: calibration.date, default=None)


def _others_on_disk(model: str) -> list[StoredFile]:
    """The files of all models on disk, for one that may have been moved; else none."""
    if not Path(model).is_absolute():
        return []
    return [
        stored
        for stored in all_calibrations()
        if stored.model is not None and Path(stored.model).is_absolute()
    ]


def is_calibrated(model: str, revision: str | None, fingerprint: Callable[[], str]) -> bool:
    """Whether there is a calibration of a model whose weights are as stored, in any dtype.

    Args:
        fingerprint: computes the model's; called only if it matters.

    Raises:
        StoreError: the file is damaged, or was written by a newer d3.
    """
    as_stored = [
        entry
        for file in _files_of(model)
        for entry in file.entries
        if entry.key.quantization is None
    ]
    return _latest_current(as_stored, model, revision, fingerprint) is not None


def find_choice(
    model: str, revision: str | None, fingerprint: Callable[[], str]
) -> ModelKey | None:
    """The form in which a model is loaded unless the user asks for another one.

    Args:
        fingerprint: computes the model's; called only if something was chosen.

    Returns:
        That of the calibration that was chosen among forms; None if there is none, or if the model
        has changed since.

    Raises:
        StoreError: the file is damaged, or was written by a newer d3.
    """
    chosen = [file.chosen for file in _files_of(model) if file.chosen is not None]
    return _latest_current(chosen, model, revision, fingerprint)


def _files_of(model: str) -> list[StoredFile]:
    """The file of a model; without one, those of all models on disk, if it may have been moved."""
    stored = calibrations_of(model)
    return [stored] if stored is not None and stored.entries else _others_on_disk(model)


def _latest_current(
    entries: list[Entry], model: str, revision: str | None, fingerprint: Callable[[], str]
) -> ModelKey | None:
    """The key of the latest of these entries for this model as it is now; None without one."""
    if not entries:
        return None
    now = fingerprint()
    for entry in sorted(entries, key=lambda entry: entry.calibration.date, reverse=True):
        key = replace(entry.key, model=model, fingerprint=now, revision=revision)
        if isinstance(_compare(entry, key), Calibration):
            return key
    return None


def _compare(entry: Entry, key: ModelKey) -> Calibration | Stale:
    return _why_stale(entry.key, entry.calibration.date, key) or entry.calibration


def _why_stale(made_for: ModelKey, date: str, key: ModelKey) -> Stale | None:
    """Why what was made for a model at that date is not used for it now; None if it is."""
    if made_for.revision != key.revision:
        then, now = ((revision or "none")[:12] for revision in (made_for.revision, key.revision))
        return Stale(f"it was made for revision {then}, and the model is now at {now}")
    if made_for.fingerprint != key.fingerprint:
        return Stale(f"the model's weights or config changed since it was made, on {date[:10]}")
    return None


def calibrations_of(model: str) -> StoredFile | None:
    """All calibrations of the model with this identity; None if there are none.

    Raises:
        StoreError: the file is damaged, or was written by a newer d3.
    """
    return read_stored(file_of(model), f"d3 calibrate remove {shlex.quote(model)}")


def all_calibrations() -> list[StoredFile]:
    """All files of the store, sorted by model. A file that cannot be used has its problem set."""
    directory = directory_of_calibrations()
    try:
        paths = [path for path in directory.iterdir() if path.suffix == ".json"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        return [StoredFile(directory, None, problem=f"{directory}: {error.strerror}")]
    found = []
    for path in paths:
        try:
            stored = read_stored(path)
        except StoreError as error:
            stored = StoredFile(path, None, problem=error.message)
        if stored is not None:  # else it has been removed by now
            found.append(stored)
    return sorted(found, key=lambda stored: (stored.model or "", stored.path))


def check_writable(key: ModelKey) -> None:
    """Checks, before a long search, that its result can be saved.

    Raises:
        StoreError: the state directory cannot be written, or the model's file is damaged or was
            written by a newer d3.
    """
    with _locked():
        calibrations_of(key.model)
        path = file_of(key.model)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass


def save(key: ModelKey, calibration: Calibration, *, chosen: bool = False) -> Path:
    """Stores a calibration beside those of other dtypes and quantizations; returns the file.

    Args:
        chosen: the model is loaded in this form from now on, unless the user asks for another.

    Raises:
        StoreError: it cannot be written, or the model's file is damaged or was written by a newer
            d3.
    """
    with _locked():
        stored = _stored_or_new(key.model)
        entries = {entry.key.form: entry for entry in stored.entries}
        entries[key.form] = Entry(key, calibration)
        choice = key.form if chosen else stored.choice
        return _write(replace(stored, entries=tuple(entries.values()), choice=choice))


def save_drafts(key: ModelKey, drafts: DraftCalibration) -> Path:
    """Stores what drafts lossless replies, as `save` stores a calibration; returns the file."""
    with _locked():
        stored = _stored_or_new(key.model)
        entries = {entry.key.form: entry for entry in stored.drafts}
        entries[key.form] = DraftEntry(key, drafts)
        return _write(replace(stored, drafts=tuple(entries.values())))


def _stored_or_new(model: str) -> StoredFile:
    return calibrations_of(model) or StoredFile(file_of(model), model)


def _write(stored: StoredFile) -> Path:
    """Replaces a file of the store, whose lock this process holds."""
    try:
        text = stored_text(stored)
    except ValueError as error:
        raise StoreError(f"the calibration cannot be stored: {error}") from error
    # This process holds the lock, so a process that was killed left these.
    for partial in stored.path.parent.glob(f".{stored.path.name}.*"):
        partial.unlink(missing_ok=True)
    replace_file(stored.path, text)
    return stored.path


def remove(model: str) -> bool:
    """Removes all calibrations of the model with this identity, even from a damaged file.

    Returns:
        Whether there were any.

    Raises:
        StoreError: the file cannot be removed.
    """
    path = file_of(model)
    with suppress(PermissionError):  # taking the lock reports it
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False  # without creating the directory
    with _locked():
        path.unlink(missing_ok=True)
    return True


@contextmanager
def _locked() -> Iterator[None]:
    """Holds the store's lock. The system releases it when the process ends, even by a kill.

    Raises:
        StoreError: another process holds it, or the directory cannot be written.
    """
    directory = directory_of_calibrations()
    try:
        with file_lock(directory / ".lock", LOCK_SECONDS):
            yield
    except TimeoutError as error:
        raise StoreError(
            f"another d3 has been writing to {directory} for {LOCK_SECONDS:g} seconds",
            "wait until it has finished, then run this again",
        ) from error
    except OSError as error:
        raise StoreError(
            f"calibrations cannot be written to {directory}: {error.strerror or error}",
            "check the disk and the directory's permissions, or set D3_HOME to another",
        ) from error
