"""A calibration as it is stored: which model it is for, its schedule, and what was measured.

The types are the file's format: msgspec reads them and checks every field. Knows nothing of files,
of how a calibration is made, or of torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta

from d3cli.base.json_rows import convert_json, refuse_unknown
from d3cli.depth.prompt_order import Schedule, schedule_from_json

LARGEST = 2**31 - 1  # no model or reply has more layers, tokens or documents
Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
Positive = Annotated[float, Meta(gt=0)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Which model a calibration is for: everything that changes the model's answers.

    Attributes:
        model: its identity: a hub id, a directory's resolved path, or "demo".
        fingerprint: of its config and weights; see `d3cli.files.fingerprint`.
        revision: the hub's commit, if the model comes from the hub.
        dtype: what it is computed in: "bfloat16".
        quantization: "int8", "int4", "nested", "bnb-4bit" or "bnb-8bit" if it is quantized while
            loading.
    """

    model: Text
    fingerprint: Sha256
    revision: Text | None
    dtype: Text
    quantization: Text | None

    @property
    def form(self) -> str:
        """How the model was loaded, as it is stored: "bfloat16" or "bfloat16 bnb-4bit"."""
        return f"{self.dtype} {self.quantization}" if self.quantization else self.dtype


def form_in_words(form: str) -> str:
    """A `ModelKey.form` in words: "bfloat16", or "bfloat16 with int8 weights"."""
    dtype, _, quantization = form.partition(" ")
    return f"{dtype} with {quantization} weights" if quantization else dtype


@dataclass(frozen=True, slots=True)
class Unseen:
    """What a schedule does to text that its search did not see, compared with full depth.

    Attributes:
        documents: the number of documents.
        drop: relative rise of perplexity: 0.008 is +0.8%.
        drop_interval: its lower and upper bound. Each bound alone has the calibration's confidence.
        kl: mean divergence from full depth, in nats per token.
        same_top: share of tokens whose most likely token stays the same.
        layer_ratio: layers, full depth over this schedule.
        byte_ratio: bytes of weights, full depth of what it was measured against over this schedule.

    Raises:
        ValueError: the bounds are in the wrong order.
    """

    documents: Count
    drop: float
    drop_interval: tuple[float, float]
    kl: float
    same_top: Annotated[float, Meta(ge=0, le=1)]
    layer_ratio: Positive
    byte_ratio: Positive

    def __post_init__(self) -> None:
        low, high = self.drop_interval
        if low > high:
            raise ValueError("drop_interval ends before it begins")


@dataclass(frozen=True, slots=True)
class Rival:
    """The fastest way of one sort that held the target on unseen text.

    Attributes:
        sort: "without decay", "constant depth" or "decaying depth".
        form: of the weights: "bfloat16 int4".
        schedule: in words.
        drop, drop_interval: as in `Unseen`.
        byte_ratio, speed: bytes and predicted time, net of repair, full depth of what it was
            measured against over this.
    """

    sort: Text
    form: Text
    schedule: Text
    drop: float
    drop_interval: tuple[float, float]
    byte_ratio: Positive
    speed: Positive


@dataclass(frozen=True, slots=True)
class _Head:
    """The schedule as JSON, whose `order` tells which kind it is."""

    schedule: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What is stored with a schedule; see `Calibration`."""

    target_drop: Annotated[float, Meta(ge=0)]
    confidence: Annotated[float, Meta(gt=0, lt=1)]
    unseen: Unseen
    settings: Mapping[Text, Scalar]
    data_hash: Text
    version: Text
    date: Text
    against: Text | None = None
    why_not_as_stored: Text | None = None
    speed: Positive | None = None
    rivals: tuple[Rival, ...] = ()

    def __post_init__(self) -> None:
        if datetime.fromisoformat(self.date).tzinfo is None:
            raise ValueError("the date has no offset from UTC")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration(_Found):
    """A schedule that was found for one model, and what was measured of it.

    Attributes:
        schedule: the schedule itself. If each prompt decides its order, the figures are those of
            documents in the orders of their own prompts.
        target_drop: the relative rise of perplexity that was allowed: 0.01 is 1%.
        confidence: the confidence with which the target is met, in (0, 1).
        unseen: what was measured on text that the search did not see.
        settings: what else decided the result of the search, by name.
        data_hash: of the text that was searched and measured on.
        version: d3's.
        date: when it was made, as ISO 8601 with an offset; the store writes UTC.
        against: the form of the weights whose full depth it was compared with: "bfloat16".
        why_not_as_stored: why that is not the model as stored; None if it is, or if the user chose
            the form.
        speed: predicted time of a reply there over that of one here, net of repair.
        rivals: the fastest ways of each sort: whether decay paid.
            (d3 up to 0.1.0 stored none of these four: its drops are against the same form.)

    Raises:
        ValueError: the date has another form, or the schedule is absurdly long.
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        _Found.__post_init__(self)
        if max(self.schedule.num_layers, self.schedule.start) > LARGEST:
            raise ValueError("the schedule has too many layers or tokens")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Calibration":
        """Reads what `to_json` wrote. Unknown fields are ignored.

        Raises:
            ScheduleError, ValueError: a field is missing, or has a wrong value.
        """
        found = convert_json(data, _Found)
        schedule = schedule_from_json(convert_json(data, _Head).schedule)
        values = {field.name: getattr(found, field.name) for field in fields(found)}
        return cls(schedule=schedule, **values)

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        data = {
            "schedule": self.schedule.to_json(),
            "target_drop": self.target_drop,
            "confidence": self.confidence,
            "unseen": asdict(self.unseen) | {"drop_interval": list(self.unseen.drop_interval)},
            "settings": dict(self.settings),
            "data_hash": self.data_hash,
            "version": self.version,
            "date": self.date,
        }
        if self.against is None:
            return data
        rivals = [asdict(one) | {"drop_interval": list(one.drop_interval)} for one in self.rivals]
        data |= {"against": self.against, "speed": self.speed, "rivals": rivals}
        if self.why_not_as_stored is None:
            return data
        return data | {"why_not_as_stored": self.why_not_as_stored}


@dataclass(frozen=True, slots=True)
class Entry:
    """One calibration of a model, in one dtype and quantization."""

    key: ModelKey
    calibration: Calibration

    def to_json(self) -> dict[str, Any]:
        """One flat object. It leaves out the model's identity: a file holds one model."""
        key = asdict(self.key)
        del key["model"]
        return key | self.calibration.to_json()

    @classmethod
    def from_json(cls, model: str, data: Mapping[str, Any]) -> "Entry":
        """Reads what `to_json` wrote, and nothing more: saving again must lose nothing.

        Raises:
            ScheduleError, ValueError: it is anything else.
        """
        key = convert_json({**data, "model": model}, ModelKey)
        entry = cls(key, Calibration.from_json(data))
        refuse_unknown(data, entry.to_json())
        return entry
