"""The record of a profiled run: tokens, depths, times, hardware; JSON in and out, no torch.

The file's format is documented in docs/trace.md. Knows nothing of how a run is made or drawn.
"""

import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from d3cli.base.errors import ScheduleError, TraceError
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import LayerBytes, WeightBytes

SCHEMA = 1
LARGEST_FILE = 512 << 20
MOST = 2**31 - 1  # more layers, tokens or token ids than anything has

MOST_LAYERS = 10_000
Count = Annotated[int, Meta(ge=0, le=MOST)]
Bytes = Annotated[int, Meta(ge=0, le=2**62)]
# Bounds beyond anything measured, so that no sum of a damaged file's numbers overflows.
Number = Annotated[float, Meta(ge=-1e12, le=1e12)]
NotNegative = Annotated[float, Meta(ge=0, le=1e12)]
Positive = Annotated[float, Meta(ge=1e-9, le=1e12)]
Setting = Number | Annotated[int, Meta(ge=-(2**62), le=2**62)] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """One token of a reply. What was not asked for, or does not exist, is None.

    Attributes:
        step: ``t``, counted from 0; token 0 comes out of the prefill.
        text: what the token completed; empty where it is half a character.
        depth: layers used to predict it.
        dropped_units: how many units, from the front of the skip order, it dropped.
        active_layers: layers of which anything ran.
        ms: milliseconds that the decode step took, mean over repeats; None for token 0.
        ms_sd: their standard deviation over repeats.
        logprob: raw natural log-probability, before penalties, temperature and warpers.
        entropy: of the raw distribution, in nats.
        top_token_id: the raw argmax, which penalties and sampling may have passed over.
        full_logprob: the token's log-probability at full depth.
        full_token_id, full_text: full depth's own choice.
        kl: ``KL(full depth || D³)`` in nats.
        needed_depth: least depth from which on every constant depth gives full depth's choice.
        saturation_layer: from this layer's output on, the logit lens gives full depth's choice.
    """

    step: Count
    token_id: Count
    text: str
    depth: Positive
    dropped_units: Count
    active_layers: Count
    ms: NotNegative | None
    ms_sd: NotNegative | None = None
    logprob: Number
    entropy: Number
    top_token_id: Count
    full_logprob: Number | None = None
    full_token_id: Count | None = None
    full_text: str | None = None
    kl: Number | None = None
    needed_depth: Positive | None = None
    saturation_layer: Count | None = None

    def __post_init__(self) -> None:
        _check_finite(self)

    @property
    def agrees(self) -> bool | None:
        """Whether its raw argmax is full depth's; None where that was not asked for."""
        return None if self.full_token_id is None else self.top_token_id == self.full_token_id


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatTrace:
    """One timed run of a reply.

    Attributes:
        ttft_s: from the prompt's first token read to the reply's first token.
        decode_s: of the decode steps together.
        cpu_percent: processor time over time while decoding: 200 is two cores busy.
    """

    ttft_s: NotNegative
    decode_s: NotNegative
    cpu_percent: NotNegative | None = None

    def __post_init__(self) -> None:
        _check_finite(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockTrace:
    """Full depth and D³ timed in turn, on the same forced tokens.

    Attributes:
        steps: how many of the reply's steps were timed, evenly spread over it.
        rounds: ABBA rounds, each of which gives two pairs.
        full_ms, own_ms: median of a step's milliseconds, at full depth and at the reply's own.
        ratios: full depth's time over the reply's, pair by pair.
        ratio: their median.
        low, high: its 95% interval, by a bootstrap over the pairs.
    """

    steps: Count
    rounds: Count
    full_ms: Positive
    own_ms: Positive
    ratios: tuple[Positive, ...]
    ratio: Positive
    low: Positive
    high: Positive

    def __post_init__(self) -> None:
        _check_finite(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Median milliseconds of one layer in a decode step at full depth, by part.

    Attributes:
        attn, mlp: its sublayers; `mlp` is None where a layer has no module for it.
        other: norms, residual sums, and whatever else the layer does.
    """

    attn: NotNegative
    mlp: NotNegative | None
    other: NotNegative

    def __post_init__(self) -> None:
        _check_finite(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersTrace:
    """Where a decode step at full depth spends its time.

    Attributes:
        steps: how many were timed.
        layers: by layer.
        head_ms: the LM head.
        rest_ms: embedding, masks, positions, the last norm, and what runs between the layers.
    """

    steps: Count
    layers: tuple[LayerTime, ...]
    head_ms: NotNegative
    rest_ms: NotNegative

    def __post_init__(self) -> None:
        _check_finite(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyTrace:
    """One prompt and its reply.

    Attributes:
        prompt: what the user asked last.
        prompt_sha256: of the ids of all prompt tokens, which a system prompt and earlier messages
            are part of, separated by blanks.
        finish_reason: "stop", "length", "context" or "interrupted".
        seed: what sampling was seeded with; None where it was greedy.
        repeats: its timed runs; the last one may be missing where it was interrupted.
        clock, layers: measured where asked for.
    """

    prompt: str
    prompt_sha256: str
    prompt_tokens: Count
    finish_reason: str
    seed: int | None = None
    tokens: tuple[TokenTrace, ...]
    repeats: tuple[RepeatTrace, ...]
    clock: ClockTrace | None = None
    layers: LayersTrace | None = None

    def __post_init__(self) -> None:
        steps = [token.step for token in self.tokens]
        _require(steps == list(range(len(steps))), "the steps do not count from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTrace:
    """The model, as it was loaded.

    Attributes:
        fingerprint: SHA-256 over its config and a sample of each tensor; None where it does not
            come from files.
        revision: the hub's commit.
        layer_bytes: bytes of weights of each layer's attention, MLP and the rest.
        fixed_bytes: read at every depth: the LM head and the last norm.
    """

    name: str
    model_type: str
    num_layers: Annotated[int, Meta(ge=1, le=MOST_LAYERS)]
    context_length: Count
    dtype: str
    quantization: str | None
    device: str
    fingerprint: str | None
    revision: str | None
    layer_bytes: tuple[tuple[Bytes, Bytes, Bytes], ...]
    fixed_bytes: Bytes

    @property
    def weight_bytes(self) -> WeightBytes:
        """What a decode step reads."""
        return WeightBytes(tuple(LayerBytes(*each) for each in self.layer_bytes), self.fixed_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTrace:
    """What it ran on."""

    system: str
    processor: str
    physical_cores: Count | None
    logical_cores: Count | None
    threads: Count
    memory_bytes: Bytes
    gpu: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A profiled run.

    Attributes:
        created: when, ISO 8601 in UTC.
        interrupted: whether it was stopped before its end.
        versions: of d3, torch, transformers and others, by name.
        schedule: the depth schedule as everywhere, with its source.
        sampling: as asked for; `ReplyTrace.seed` has the seed.
        max_tokens: None where the context was the limit.
        stop: texts that ended a reply; its tokens include them.
        raw, think: whether prompts went without a chat template, and whether thinking was asked
            for or forbidden.
        compared: whether full depth's values were asked for.
        needed_order: the skip order whose nested family `needed_depth` refers to; None where it
            was not asked for.
        peak_memory_bytes: of the timed runs, before anything was compared; of the GPU where the
            model is on one.
    """

    schema: int = SCHEMA
    created: str
    interrupted: bool
    versions: dict[str, str | None]
    machine: MachineTrace
    model: ModelTrace
    schedule: dict[str, Any]
    sampling: dict[str, Setting]
    max_tokens: Count | None
    stop: tuple[str, ...] = ()
    raw: bool = False
    think: bool | None = None
    compared: bool = False
    needed_order: tuple[str, ...] | None = None
    peak_memory_bytes: Bytes
    replies: tuple[ReplyTrace, ...]

    def __post_init__(self) -> None:
        schedule = self.depth_schedule
        layers, weights = self.model.num_layers, self.model.weight_bytes
        _require(schedule.num_layers == layers, "the schedule is for another number of layers")
        _require(len(weights.layers) == layers, "not every layer's bytes are there")
        _require(weights.total > 0, "the model has no weights")
        _check_order(self.needed_order or (), weights)
        for reply in self.replies:
            _require(
                reply.layers is None or len(reply.layers.layers) == layers,
                "not every layer's time is there",
            )
            for token in reply.tokens:
                fits = token.dropped_units <= len(schedule.skip_order) and token.depth <= layers
                _require(fits, f"step {token.step} does not fit the schedule")
                known = token.needed_depth is None or self.needed_order is not None
                _require(known, "a needed depth without needed_order")

    @property
    def depth_schedule(self) -> DepthSchedule:
        """The schedule.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return DepthSchedule.from_json(self.schedule)
        except ScheduleError as error:
            raise ValueError(error.message) from error


def read_trace(path: Path) -> Trace:
    """A trace that `d3 profile` wrote; ``-`` reads stdin.

    Raises:
        TraceError: it cannot be read, is damaged, or a newer d3 wrote it.
    """
    try:
        with sys.stdin.buffer if path == Path("-") else path.expanduser().open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        # No such home, a NUL in the name, a stdin that the shell has closed.
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"the trace {path} cannot be read: {reason}", "check the path") from error
    if len(data) > LARGEST_FILE:
        raise TraceError(f"{path} is larger than 512 MiB, so it is no trace", CHECK_FILE)
    return parse_trace(data, str(path))


def parse_trace(data: bytes, name: str) -> Trace:
    """Reads what `to_json` gave; fields that it does not know are passed over.

    Raises:
        TraceError: it is damaged, or a newer d3 wrote it; `name` is what to call it.
    """
    try:
        data = data.removeprefix(b"\xef\xbb\xbf")  # editors on Windows put it there
        head = msgspec.json.decode(data, type=_Head)
        if head.schema > SCHEMA:
            raise TraceError(
                f"{name} was written by a newer d3 (schema {head.schema}, this one reads {SCHEMA})",
                "update d3, or draw it with the d3 that wrote it",
            )
        return msgspec.json.decode(data, type=Trace)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        words = str(error) or type(error).__name__
        raise TraceError(f"{name} is not a whole trace: {words}", CHECK_FILE) from error


def to_json(trace: Trace) -> dict[str, Any]:
    """A plain object, without what follows from the rest."""
    found: dict[str, Any] = msgspec.to_builtins(trace)
    return found


CHECK_FILE = "give a file that d3 profile -o json wrote"


@dataclass(frozen=True, slots=True)
class _Head:
    """What every version of the format begins with."""

    schema: Annotated[int, Meta(ge=1)]


def _check_order(order: tuple[str, ...], weights: WeightBytes) -> None:
    """Raises ValueError where it is no skip order of these layers."""
    try:
        sizes = tuple(weights.weight(unit) for unit in order)
        DepthSchedule(len(weights.layers), skip_order=order, weights=sizes)
    except (ScheduleError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"needed_order is no skip order of the model: {error}") from error


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _check_finite(value: Any) -> None:
    """NaN and infinity have no place in JSON; a negative zero and the rest do."""
    for field in fields(value):
        number = getattr(value, field.name)
        _require(not isinstance(number, float) or math.isfinite(number), f"{field.name}: {number}")
