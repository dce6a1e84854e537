"""The figures of a trace: ratios, rates, agreement, needed depth by position. No torch.

Depths and ratios are means over the decode steps ``1 .. N - 1``, as everywhere in d3.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles, stdev, variance
from typing import Any

import msgspec

from d3cli.profile.lossless_figures import LosslessFigures, lossless_figures
from d3cli.profile.trace import ReplyTrace, TokenTrace, Trace
from d3cli.profile.trace_file import to_json

MOST_STRETCHES, SHORTEST_STRETCH = 8, 8
SHORTEST_S = 1e-6  # seconds of decoding below which there is no rate
Z95 = 1.96  # standard errors on either side of a mean: 95% of a normal distribution
TOLERANCE = 1e-6  # rounding of depths, which are sums of weights
FEWEST_STEPS = 16  # in each half; with fewer, early and late tokens are not compared


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over repeats and their standard deviation, which is None for a single run."""

    mean: float
    sd: float | None


def mean(spread: Spread | None) -> float | None:
    """The mean over repeats; None without any."""
    return None if spread is None else spread.mean


@dataclass(frozen=True, slots=True)
class Needed:
    """The depth that tokens needed to choose as full depth does, over the decode steps.

    Attributes:
        mean, given: mean needed depth, and mean depth used.
        floor: the minimum depth that was tried; no needed depth can be smaller.
        at_floor: share of steps that needed only that.
        enough: share of steps that used at least what they needed.
        saturation: mean layer at which the logit lens settles: what early exit would need.
        early, late: mean needed depth of the first and the second half of the replies' steps.
        margin: half the 95% interval of ``late - early``, as if tokens were independent. All three
            are None if there are too few tokens.
    """

    mean: float
    given: float
    floor: float
    at_floor: float
    enough: float
    saturation: float
    early: float | None
    late: float | None
    margin: float | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps ``begin`` to ``end`` (exclusive) of all replies together; None if not measured."""

    begin: int
    end: int
    tokens: int
    depth: float
    ms: float | None
    agreement: float | None
    kl: float | None
    needed: float | None
    saturation: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one reply, or of several together.

    Attributes:
        tokens, prompt_tokens: counts.
        ttft_s, tokens_per_second: over repeats; of several replies, their mean and their total.
        tpot_ms, tpot_p95_ms: median and 95th percentile of a decode step.
        decode_s: mean over repeats of all decoding.
        cpu_percent: mean processor use while decoding.
        layer_ratio, byte_ratio: full depth over the depth used; bytes of weights only.
        byte_ratio_net: the same with one more full-depth read for each reply: its repair.
        full_bits, bits, min_bits: bits read for each weight of the layers: at full depth, on
            average and at least; None if the weights are not nested.
        compared, agreed: tokens below full depth that were compared, and those that agreed.
        perplexity, full_perplexity: of the replies, with D³ and at full depth.
        kl: mean, in nats per token.
        lossless: what was drafted and accepted; None if the replies are not lossless. Their tokens
            share the bytes of passes, so that they have no bits, and need no repair.
    """

    replies: int
    tokens: int
    prompt_tokens: int
    ttft_s: Spread | None
    tokens_per_second: Spread | None
    tpot_ms: float | None
    tpot_p95_ms: float | None
    decode_s: float
    cpu_percent: float | None
    mean_depth: float | None
    min_depth: float | None
    layer_ratio: float | None
    byte_ratio: float | None
    byte_ratio_net: float | None
    full_bits: float | None
    bits: float | None
    min_bits: float | None
    compared: int
    agreed: int
    perplexity: float | None
    full_perplexity: float | None
    kl: float | None
    needed: Needed | None
    stretches: tuple[Stretch, ...]
    lossless: LosslessFigures | None

    @property
    def agreement(self) -> float | None:
        """The share that agreed; None if nothing was compared."""
        return self.agreed / self.compared if self.compared else None


def summarize(trace: Trace, replies: Sequence[ReplyTrace]) -> Summary:
    """The figures of some replies of a trace together."""
    tokens = [token for reply in replies for token in reply.tokens]
    steps = [token for token in tokens if token.step]
    times = [token.ms for token in steps if token.ms is not None]
    layers, weights = trace.model.num_layers, trace.model.weight_bytes
    mean_depth = fmean(token.depth for token in steps) if steps else None
    below = [token for token in steps if token.full_token_id is not None and token.depth < layers]
    read = [token.bytes_read for token in steps]
    whole = bool(tokens) and all(token.full_logprob is not None for token in tokens)
    timed = [reply.repeats for reply in replies if reply.repeats]  # an unstarted reply has none
    repeats = list(zip(*timed, strict=False))
    rates = [
        len(steps) / seconds
        for each in repeats
        if (seconds := math.fsum(repeat.decode_s for repeat in each)) > SHORTEST_S and steps
    ]
    drafted = lossless_figures(replies)
    repairs = 0 if drafted else sum(len(reply.tokens) > 1 for reply in replies)
    has_bits = bool(steps) and drafted is None
    used = [one.cpu_percent for each in repeats for one in each if one.cpu_percent is not None]
    decode_s = fmean(math.fsum(one.decode_s for one in each) for each in repeats) if repeats else 0
    return Summary(
        replies=len(replies),
        tokens=len(tokens),
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        ttft_s=_spread([fmean(one.ttft_s for one in each) for each in repeats]),
        tokens_per_second=_spread(rates),
        tpot_ms=median(times) if times else None,
        tpot_p95_ms=_percentile_95(times),
        decode_s=decode_s,
        cpu_percent=fmean(used) if used else None,
        mean_depth=mean_depth,
        min_depth=min((token.depth for token in steps), default=None),
        layer_ratio=None if mean_depth is None else layers / mean_depth,
        byte_ratio=_byte_ratio(trace, steps, repairs=0),
        byte_ratio_net=_byte_ratio(trace, steps, repairs=repairs),
        full_bits=weights.bits(weights.total) if has_bits else None,
        bits=weights.bits(fmean(read)) if has_bits else None,
        min_bits=weights.bits(min(read)) if has_bits else None,
        compared=len(below),
        agreed=sum(bool(token.agrees) for token in below),
        perplexity=_perplexity([token.logprob for token in tokens]) if whole else None,
        full_perplexity=_perplexity([token.full_logprob or 0.0 for token in tokens])
        if whole
        else None,
        kl=_mean(steps, lambda token: token.kl),
        needed=_needed(trace, replies),
        stretches=tuple(_stretches(steps)),
        lossless=drafted,
    )


def with_figures(trace: Trace) -> dict[str, Any]:
    """The trace as a plain object, with the figures of each reply and of all: stats and totals."""
    data = to_json(trace)
    for reply, written in zip(trace.replies, data["replies"], strict=True):
        written["stats"] = figures(summarize(trace, [reply]))
    return data | {"totals": figures(summarize(trace, trace.replies))}


def figures(summary: Summary) -> dict[str, Any]:
    """A summary as a plain object."""
    found: dict[str, Any] = msgspec.to_builtins(summary)
    return found | {"agreement": summary.agreement}


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def _percentile_95(values: list[float]) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return quantiles(values, n=20, method="inclusive")[-1]


def _perplexity(log_probs: list[float]) -> float:
    return math.exp(min(-fmean(log_probs), 700.0))  # exp(700) is about the largest float


def _mean(steps: Sequence[TokenTrace], value: Callable[[TokenTrace], float | None]) -> float | None:
    found = [number for token in steps if (number := value(token)) is not None]
    return fmean(found) if found else None


def _byte_ratio(trace: Trace, steps: Sequence[TokenTrace], repairs: int) -> float | None:
    read = sum(token.bytes_read for token in steps)
    return trace.model.weight_bytes.ratio(len(steps), read, repairs=repairs)


def _needed(trace: Trace, replies: Sequence[ReplyTrace]) -> Needed | None:
    known = [
        (2 * token.step > len(reply.tokens), token, token.needed_depth, token.saturation_layer)
        for reply in replies
        for token in reply.tokens[1:]
        if token.needed_depth is not None and token.saturation_layer is not None
    ]
    if not known:
        return None
    needed = [depth for _, _, depth, _ in known]
    floor = min(_needed_floor(trace, reply) for reply in replies)
    early = [depth for is_late, _, depth, _ in known if not is_late]
    late = [depth for is_late, _, depth, _ in known if is_late]
    enough = min(len(early), len(late)) >= FEWEST_STEPS
    return Needed(
        mean=fmean(needed),
        given=fmean(token.depth for _, token, _, _ in known),
        floor=floor,
        at_floor=fmean(depth <= floor + TOLERANCE for depth in needed),
        enough=fmean(token.depth >= depth - TOLERANCE for _, token, depth, _ in known),
        saturation=fmean(layer for _, _, _, layer in known),
        early=fmean(early) if enough else None,
        late=fmean(late) if enough else None,
        margin=Z95 * math.sqrt(variance(early) / len(early) + variance(late) / len(late))
        if enough
        else None,
    )


def _needed_floor(trace: Trace, reply: ReplyTrace) -> float:
    """The minimum depth that was tried for a reply's tokens."""
    weights = trace.model.weight_bytes.weights(trace.needed_order_of(reply) or ())
    return trace.model.num_layers - math.fsum(weights)


def _stretches(steps: Sequence[TokenTrace]) -> Iterator[Stretch]:
    longest = max((token.step for token in steps), default=0)
    width = max(SHORTEST_STRETCH, math.ceil(longest / MOST_STRETCHES))
    for begin in range(1, longest + 1, width):
        here = [token for token in steps if begin <= token.step < begin + width]
        yield Stretch(
            begin=begin,
            end=min(begin + width, longest + 1),
            tokens=len(here),
            depth=fmean(token.depth for token in here),
            ms=_mean(here, lambda token: token.ms),
            agreement=_mean(here, lambda token: token.agrees),
            kl=_mean(here, lambda token: token.kl),
            needed=_mean(here, lambda token: token.needed_depth),
            saturation=_mean(here, lambda token: token.saturation_layer),
        )
