"""The times in a trace: of a reply's repeats, against full depth, and of each layer's parts."""

from dataclasses import dataclass

from d3cli.profile.trace_fields import Count, NotNegative, Positive, check_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatTrace:
    """One timed run of a reply.

    Attributes:
        ttft_s: seconds from the start of the prefill to the reply's first token.
        decode_s: seconds of all decode steps together.
        cpu_percent: processor time over time while decoding; 200 means two busy cores.
    """

    ttft_s: NotNegative
    decode_s: NotNegative
    cpu_percent: NotNegative | None = None

    def __post_init__(self) -> None:
        check_finite(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockTrace:
    """Full depth and the schedule, timed in turn on the same forced tokens.

    Attributes:
        steps: number of the reply's steps that were timed, spread evenly over it.
        rounds: ABBA rounds; each yields two pairs.
        full_ms, own_ms: median milliseconds of a step, at full depth and at the reply's own depth.
        ratios: full depth's time over the reply's, for each pair.
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
        check_finite(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Median milliseconds of each part of one layer in a decode step at full depth.

    Attributes:
        attn, mlp: its sublayers; `mlp` is None if the layer has no MLP module.
        other: norms, residual sums and the rest of the layer.
    """

    attn: NotNegative
    mlp: NotNegative | None
    other: NotNegative

    def __post_init__(self) -> None:
        check_finite(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersTrace:
    """How a decode step at full depth spends its time.

    Attributes:
        steps: number of steps timed.
        layers: one for each layer.
        head_ms: the LM head.
        rest_ms: embedding, masks, positions, the last norm, and the code between the layers.
    """

    steps: Count
    layers: tuple[LayerTime, ...]
    head_ms: NotNegative
    rest_ms: NotNegative

    def __post_init__(self) -> None:
        check_finite(self)
