"""What `d3 calibrate --for lossless` found, as it is stored: the schedule to draft with.

The types are the file's format, as in `calibration_record`. Knows nothing of files or of torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta

from d3cli.base.json_rows import convert_json, refuse_unknown
from d3cli.depth.calibration_record import LARGEST, Count, ModelKey, Positive, Scalar, Text
from d3cli.depth.schedule import DepthSchedule

Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class _Head:
    """The schedule as JSON."""

    schedule: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What is stored with a schedule; see `DraftCalibration`."""

    agreement: Share
    agreement_low: Share
    documents: Count
    tokens: Count
    cost: Positive
    length: Annotated[int, Meta(ge=0, le=LARGEST)]
    gain: Annotated[float, Meta(ge=1)]
    gain_low: Annotated[float, Meta(ge=1)]
    confidence: Annotated[float, Meta(gt=0, lt=1)]
    settings: Mapping[Text, Scalar]
    data_hash: Text
    version: Text
    date: Text

    def __post_init__(self) -> None:
        if datetime.fromisoformat(self.date).tzinfo is None:
            raise ValueError("the date has no offset from UTC")
        if self.agreement_low > self.agreement or self.gain_low > self.gain:
            raise ValueError("a lower bound is above what was measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCalibration(_Found):
    """The schedule that drafts for a model's lossless replies, and what was measured of it.

    Attributes:
        schedule: drops the same units at every drafted token.
        agreement: share of the tokens of unseen replies at which it chooses what full depth does.
        agreement_low: its lower bound, with the calibration's confidence.
        documents, tokens: the unseen replies, and their tokens that count.
        cost: of a drafted token, in steps at full depth, as measured.
        length: the best number of tokens to draft there; 0 if no draft pays.
        gain: the tokens that this gives in the time of one at full depth; 1 if no draft pays.
        gain_low: the same at the lower bound of the agreement.
        confidence: of each bound, in (0, 1).
        settings: what else decided the result, by name.
        data_hash: of the replies.
        version, date: as in `Calibration`.

    Raises:
        ValueError: the date has another form, a bound is above its value, or the schedule is
            absurdly long.
    """

    schedule: DepthSchedule

    def __post_init__(self) -> None:
        _Found.__post_init__(self)
        if max(self.schedule.num_layers, self.schedule.start) > LARGEST:
            raise ValueError("the schedule has too many layers or tokens")

    @property
    def pays(self) -> bool:
        """Whether drafts by it are expected to save time."""
        return self.gain_low > 1

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DraftCalibration":
        """Reads what `to_json` wrote. Unknown fields are ignored.

        Raises:
            ScheduleError, ValueError: a field is missing, or has a wrong value.
        """
        found = convert_json(data, _Found)
        schedule = DepthSchedule.from_json(convert_json(data, _Head).schedule)
        values = {field.name: getattr(found, field.name) for field in fields(found)}
        return cls(schedule=schedule, **values)

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self) | {
            "schedule": self.schedule.to_json(),
            "settings": dict(self.settings),
        }


@dataclass(frozen=True, slots=True)
class DraftEntry:
    """What drafts for a model in one dtype and quantization."""

    key: ModelKey
    drafts: DraftCalibration

    def to_json(self) -> dict[str, Any]:
        """One flat object, as `Entry.to_json`."""
        key = asdict(self.key)
        del key["model"]
        return key | self.drafts.to_json()

    @classmethod
    def from_json(cls, model: str, data: Mapping[str, Any]) -> "DraftEntry":
        """Reads what `to_json` wrote, and nothing more: saving again must lose nothing.

        Raises:
            ScheduleError, ValueError: it is anything else.
        """
        key = convert_json({**data, "model": model}, ModelKey)
        entry = cls(key, DraftCalibration.from_json(data))
        refuse_unknown(data, entry.to_json())
        return entry
