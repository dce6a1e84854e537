"""One file of the calibration store: its name, its format, and what reads it.

The file of a model has an entry for each dtype and quantization that it was calibrated in. Knows
nothing of which entry is used; no torch.
"""

import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from d3cli.base.bounded_files import FileKind
from d3cli.base.errors import ScheduleError, StoreError, one_line
from d3cli.base.json_rows import convert_json, decode_json, refuse_unknown
from d3cli.base.settings import state_dir
from d3cli.depth.calibration_record import Count, Entry, Text
from d3cli.depth.prompt_order import PromptSchedule

# Schema 2 has schedules whose order each prompt decides; schema 3 has what was compared with which
# form of the weights, and a choice of one. A file without these is written as schema 1, which d3
# 0.1.0 reads.
SCHEMAS = (1, 2, 3)
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
        problem: why it cannot be used; empty if it can.
    """

    path: Path
    model: str | None
    entries: tuple[Entry, ...] = ()
    choice: str | None = None
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


def stored_text(model: str, entries: Collection[Entry], choice: str | None) -> str:
    """What `read_stored` reads back.

    Raises:
        ValueError: it could not be read.
    """
    data = [entry.to_json() for entry in entries]
    file = _File(_schema(entries, choice), model, data, choice)
    text = json.dumps(file.to_json(), indent=1, allow_nan=False) + "\n"
    _parse(file_of(model), decode_json(text, dict[str, Any]))
    return text


@dataclass(frozen=True, slots=True)
class _Head:
    """The part that every version of the format has."""

    schema: Count


@dataclass(frozen=True, slots=True)
class _File(_Head):
    """A whole file. `Entry.from_json` reads its entries."""

    model: Text
    entries: list[dict[str, Any]]
    choice: Text | None = None

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        return data if self.choice is not None else {k: v for k, v in data.items() if k != "choice"}


def _schema(entries: Collection[Entry], choice: str | None) -> int:
    """The oldest schema that can hold these."""
    calibrations = [entry.calibration for entry in entries]
    if choice is not None or any(one.against is not None for one in calibrations):
        return 3
    return 2 if any(isinstance(one.schedule, PromptSchedule) for one in calibrations) else 1


def _parse(path: Path, whole: dict[str, Any]) -> StoredFile:
    file = convert_json(whole, _File)
    refuse_unknown(whole, file.to_json())
    if file_of(file.model).name != path.name:
        raise ValueError("its name belongs to another model")
    if not file.entries:
        raise ValueError("it has no entries")
    entries = tuple(Entry.from_json(file.model, entry) for entry in file.entries)
    if len({entry.key.form for entry in entries}) < len(entries):
        raise ValueError("it holds two calibrations for one dtype and quantization")
    if file.choice is not None and file.choice not in {entry.key.form for entry in entries}:
        raise ValueError("it has no calibration for the form that it chooses")
    return StoredFile(path, file.model, entries, file.choice)
