"""A calibration as it is kept: which model it is for, its schedule, what was measured of it.

JSON in and out, each field checked both ways, so that whatever is written can be read. Knows
nothing of files, of how a calibration is made, or of torch.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from d3cli.depth.schedule import DepthSchedule

Scalar = str | int | float | bool | None

LARGEST = 2**31 - 1  # more layers, tokens or documents than anything has


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Which model a calibration is for: whatever changes its answers.

    Attributes:
        model: its identity: a hub id, a directory's resolved path, or "demo".
        fingerprint: of its config and weights; see `d3cli.files.safetensors.fingerprint`.
        revision: the hub's commit, where it comes from there.
        dtype: what it is computed in: "bfloat16".
        quantization: "bnb-4bit" or "bnb-8bit" where it is quantized while loading.

    Raises:
        ValueError: a field is of another type.
    """

    model: str
    fingerprint: str
    revision: str | None
    dtype: str
    quantization: str | None

    def __post_init__(self) -> None:
        _require(is_text(self.model), "model")
        _require(is_text(self.dtype), "dtype")
        _require(self.revision is None or is_text(self.revision), "revision")
        _require(self.quantization is None or is_text(self.quantization), "quantization")
        hexadecimal = isinstance(self.fingerprint, str) and re.fullmatch(
            "[0-9a-f]{64}", self.fingerprint
        )
        _require(bool(hexadecimal), "fingerprint")

    @property
    def form(self) -> str:
        """How the model was loaded, in words: "bfloat16" or "bfloat16 bnb-4bit"."""
        return f"{self.dtype} {self.quantization}" if self.quantization else self.dtype


@dataclass(frozen=True, slots=True)
class Unseen:
    """What a schedule does to text that its search did not see, compared with full depth.

    Attributes:
        documents: how many there were.
        drop: relative rise of perplexity: 0.008 is +0.8%.
        drop_interval: its bounds, each of which holds alone with the calibration's confidence.
        kl: mean divergence from full depth, in nats a token.
        same_top: share of tokens whose likeliest one stays the same.
        layer_ratio, byte_ratio: layers and bytes of weights, full depth over this schedule.

    Raises:
        ValueError: a field is of another type or out of range.
    """

    documents: int
    drop: float
    drop_interval: tuple[float, float]
    kl: float
    same_top: float
    layer_ratio: float
    byte_ratio: float

    def __post_init__(self) -> None:
        _require(is_count(self.documents), "documents")
        for name in ("drop", "kl", "same_top", "layer_ratio", "byte_ratio"):
            _require(_is_number(getattr(self, name)), name)
        low, high = self.drop_interval
        _require(_is_number(low) and _is_number(high) and low <= high, "drop_interval")
        _require(0 <= self.same_top <= 1, "same_top")
        _require(self.layer_ratio > 0 and self.byte_ratio > 0, "a ratio")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A schedule that was found for one model, and what was measured of it.

    Attributes:
        schedule: the schedule itself.
        target_drop: the relative rise of perplexity that was allowed: 0.01 is 1%.
        confidence: with which the target is met, in (0, 1).
        unseen: what was measured on text that the search did not see.
        settings: what else decided the search's result, by name.
        data_hash: of the text that was searched and measured on.
        version: d3's.
        date: when, as ISO 8601 with an offset; the store writes UTC.

    Raises:
        ValueError: a field is of another type or out of range.
    """

    schedule: DepthSchedule
    target_drop: float
    confidence: float
    unseen: Unseen
    settings: Mapping[str, Scalar]
    data_hash: str
    version: str
    date: str

    def __post_init__(self) -> None:
        _require(max(self.schedule.num_layers, self.schedule.start) <= LARGEST, "schedule")
        _require(_is_number(self.target_drop) and self.target_drop >= 0, "target_drop")
        _require(_is_number(self.confidence) and 0 < self.confidence < 1, "confidence")
        for name, value in self.settings.items():
            plain = value is None or isinstance(value, str | bool) or _is_number(value)
            _require(is_text(name) and plain, "settings")
        _require(is_text(self.data_hash), "data_hash")
        _require(is_text(self.version), "version")
        _require(is_text(self.date), "date")
        _require(datetime.fromisoformat(self.date).tzinfo is not None, "date")

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        return {
            "schedule": self.schedule.to_json(),
            "target_drop": self.target_drop,
            "confidence": self.confidence,
            "unseen": asdict(self.unseen) | {"drop_interval": list(self.unseen.drop_interval)},
            "settings": dict(self.settings),
            "data_hash": self.data_hash,
            "version": self.version,
            "date": self.date,
        }

    @classmethod
    def from_json(cls, data: object) -> "Calibration":
        """Reads what `to_json` wrote.

        Raises:
            ScheduleError, ValueError, OverflowError: it is anything else.
        """
        found = check_object("a calibration", data, cls.__slots__)
        schedule = DepthSchedule.from_json(found["schedule"])
        _require(schedule.to_json() == found["schedule"], "schedule")
        unseen = check_object("unseen", found["unseen"], Unseen.__slots__)
        _require(isinstance(unseen["drop_interval"], list), "drop_interval")
        _require(isinstance(found["settings"], dict), "settings")
        measured = Unseen(**unseen | {"drop_interval": tuple(unseen["drop_interval"])})
        return cls(**found | {"schedule": schedule, "unseen": measured})


@dataclass(frozen=True, slots=True)
class Entry:
    """One calibration of a model, in one dtype and quantization."""

    key: ModelKey
    calibration: Calibration

    def to_json(self) -> dict[str, Any]:
        """One flat object; the model's identity is left out, since a file holds one model."""
        key = asdict(self.key)
        del key["model"]
        return key | self.calibration.to_json()

    @classmethod
    def from_json(cls, model: str, data: object) -> "Entry":
        """Reads what `to_json` wrote.

        Raises:
            ScheduleError, ValueError, OverflowError: it is anything else.
        """
        of_key = set(ModelKey.__slots__) - {"model"}
        found = check_object("an entry", data, of_key.union(Calibration.__slots__))
        key = {name: found.pop(name) for name in of_key}
        return cls(ModelKey(model=model, **key), Calibration.from_json(found))


def check_object(what: str, data: object, names: Iterable[str]) -> dict[str, Any]:
    """A copy of `data`, where it is a JSON object of exactly these names.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{what} is no object")  # noqa: TRY004 - one kind for all that is damaged
    missing, unknown = set(names) - data.keys(), data.keys() - set(names)
    if missing or unknown:
        raise ValueError(
            f"{what} lacks {min(missing)}" if missing else f"{what} has unknown {min(unknown)}"
        )
    return dict(data)


def is_text(value: object) -> bool:
    """Whether it is a text, and not an empty one."""
    return isinstance(value, str) and bool(value)


def is_count(value: object) -> bool:
    """Whether it is a whole number from 1 on, and not absurd."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, field: str) -> None:
    if not holds:
        raise ValueError(f"{field} is of another type, or out of range")
