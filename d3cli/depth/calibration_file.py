"""One file of the calibration store: its name, its format, and what reads it.

The file of a model has an entry for each dtype and quantization that it was calibrated in, for
replies and for drafts. Knows nothing of which entry is used; no torch.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from d3cli.base.bounded_files import FileKind
from d3cli.base.errors import ScheduleError, StoreError, one_line
from d3cli.base.json_rows import convert_json, decode_json, refuse_unknown
from d3cli.base.settings import state_dir
from d3cli.depth.calibration_record import Count, Entry, Text
from d3cli.depth.draft_record import DraftEntry
from d3cli.depth.prompt_order import PromptSchedule

# Schema 2 has schedules whose order each prompt decides; schema 3 has what was compared with which
# form of the weights, and a choice of one; schema 4 has what drafts lossless replies. A file is
# written in the oldest schema that holds it; d3 0.1.0 reads schema 1.
SCHEMAS = (1, 2, 3, 4)
LARGEST_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of the store.

    Attributes:
        path: where it is.
        model: the identity of the model that it is for; None if that cannot be read.
        entries: its calibrations, at most one for each dtype and quantization.
        choice: the form of the one that is used unless the user asks for another form; None for the
            model as stored.
        drafts: what drafts its lossless replies, at most one for each dtype and quantization.
        problem: why it cannot be used; empty if it can.
    """

    path: Path
    model: str | None
    entries: tuple[Entry, ...] = ()
    choice: str | None = None
    drafts: tuple[DraftEntry, ...] = ()
    problem: str = ""

    @property
    def chosen(self) -> Entry | None:
        """The calibration of the form that was chosen; None without a choice."""
        return next((entry for entry in self.entries if entry.key.form == self.choice), None)


def directory_of_calibrations() -> Path:
    """Where the files are. It need not exist."""
    return state_dir() / "calibrations"


def file_of(model: str) -> Path:
    """The file for the calibrations of the model with this identity. It need not exist."""
    readable = re.sub(r"[^a-z0-9._-]+", "-", model.lower())[-48:].strip("-.")
    digest = sha256(model.encode(errors="surrogateescape")).hexdigest()
    return directory_of_calibrations() / f"{readable}-{digest[:8]}.json"


def read_stored(path: Path, remove_command: str = "") -> StoredFile | None:
    """One file of the store; None if it is not there.

    Args:
        remove_command: a command that removes it, for a hint.

    Raises:
        StoreError: it is damaged, or was written by a newer d3.
    """
    remedy = "move it away" + (f", or run: {remove_command}" if remove_command else "")
    kind = FileKind(what="calibration", largest=LARGEST_FILE, error=StoreError, hint=remedy)
    data = kind.find(path)
    if data is None:
        return None
    try:
        whole = decode_json(data, dict[str, Any])
        if convert_json(whole, _Head).schema in SCHEMAS:
            return _parse(path, whole)
    except (ScheduleError, ValueError) as error:
        raise StoreError(f"{path} is damaged: {one_line(error)[:120]}", remedy) from error
    raise StoreError(f"{path} was written by a newer d3", f"update d3, or {remedy}")


def stored_text(stored: StoredFile) -> str:
    """What `read_stored` reads back.

    Raises:
        ValueError: it could not be read.
    """
    assert stored.model is not None
    file = _File(
        _schema(stored),
        stored.model,
        [entry.to_json() for entry in stored.entries],
        stored.choice,
        [entry.to_json() for entry in stored.drafts],
    )
    text = json.dumps(file.to_json(), indent=1, allow_nan=False) + "\n"
    _parse(file_of(stored.model), decode_json(text, dict[str, Any]))
    return text


@dataclass(frozen=True, slots=True)
class _Head:
    """The part that every version of the format has."""

    schema: Count


@dataclass(frozen=True, slots=True)
class _File(_Head):
    """A whole file. `Entry.from_json` reads its entries, `DraftEntry.from_json` its drafts."""

    model: Text
    entries: list[dict[str, Any]]
    choice: Text | None = None
    drafts: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A plain object, without what older schemas have no field for."""
        data = asdict(self)
        left_out = {name for name in ("choice", "drafts") if not data[name]}
        return {name: value for name, value in data.items() if name not in left_out}


def _schema(stored: StoredFile) -> int:
    """The oldest schema that can hold a file."""
    if stored.drafts:
        return 4
    calibrations = [entry.calibration for entry in stored.entries]
    if stored.choice is not None or any(one.against is not None for one in calibrations):
        return 3
    return 2 if any(isinstance(one.schedule, PromptSchedule) for one in calibrations) else 1


def _parse(path: Path, whole: dict[str, Any]) -> StoredFile:
    file = convert_json(whole, _File)
    refuse_unknown(whole, file.to_json())
    if file_of(file.model).name != path.name:
        raise ValueError("its name belongs to another model")
    if not file.entries and not file.drafts:
        raise ValueError("it has no entries")
    entries = tuple(Entry.from_json(file.model, entry) for entry in file.entries)
    drafts = tuple(DraftEntry.from_json(file.model, entry) for entry in file.drafts)
    for each in (entries, drafts):
        if len({entry.key.form for entry in each}) < len(each):
            raise ValueError("it holds two calibrations for one dtype and quantization")
    if file.choice is not None and file.choice not in {entry.key.form for entry in entries}:
        raise ValueError("it has no calibration for the form that it chooses")
    return StoredFile(path, file.model, entries, file.choice, drafts)
