"""The quality drop: a perplexity ratio with its interval, from losses against full depth.

Statistics only. Knows nothing of models or schedules.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Nats lost per response token, one array per document: full depth's log-probability minus D³'s.
Losses = list[NDArray[np.float64]]

RESAMPLES = 2000
POSITION_BINS = (0, 32, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class Drop:
    """The rise in perplexity: ``PPL(D³) / PPL(full depth) - 1`` over response tokens.

    Attributes:
        value: as measured.
        low, high: one-sided bounds. Each alone holds with the requested confidence.
    """

    value: float
    low: float
    high: float


def measure_drop(losses: Losses, confidence: float, seed: int = 0) -> Drop:
    """The drop over all tokens, with one-sided bounds by a bootstrap over documents.

    Whole documents are resampled, because the tokens of one document depend on each other. The
    bounds are bias-corrected and accelerated (Efron 1987), because a few documents carry most of
    the loss.
    """
    return _bootstrap(_sums_and_tokens(losses), _mean, confidence, seed)


def measure_rise(ours: Losses, theirs: Losses, confidence: float, seed: int = 0) -> Drop:
    """How much higher the perplexity of our texts is than that of theirs, from nats per token.

    The texts answer the same prompts and may have different lengths. They are resampled in pairs.
    """
    samples = (*_sums_and_tokens(ours), *_sums_and_tokens(theirs))
    return _bootstrap(
        samples, lambda a, b, c, d, axis: _mean(a, b, axis) - _mean(c, d, axis), confidence, seed
    )


def share_with_bound(hits: Sequence[NDArray[np.bool_]], confidence: float) -> tuple[float, float]:
    """The share of hits among all tokens, and its one-sided lower bound.

    The bound is a bootstrap's over documents, as in `measure_drop`.
    """
    samples = _sums_and_tokens([each.astype(np.float64) for each in hits])
    value, low, _ = _with_bounds(samples, _mean, confidence, seed=0)
    return value, max(low, 0.0)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """A two-sided interval of the median, by a percentile bootstrap."""
    return _interval((np.array(values),), np.median, confidence, "percentile")


def mean_loss(losses: Sequence[NDArray[np.float64]]) -> float:
    """Mean nats lost per token."""
    return float(np.concatenate(list(losses)).mean())


def drop_by_position(losses: Losses) -> Iterator[tuple[int, int, int, float]]:
    """Yields ``(begin, end, tokens, drop)`` for each stretch of the reply that has tokens."""
    for begin, end in zip(POSITION_BINS, (*POSITION_BINS[1:], 1 << 30), strict=True):
        part = np.concatenate([loss[begin:end] for loss in losses])
        if len(part):
            longest = max(len(loss) for loss in losses)
            yield begin, min(end, longest), len(part), math.expm1(float(part.mean()))


def _sums_and_tokens(losses: Losses) -> tuple[NDArray[np.float64], ...]:
    sums = [float(loss.sum()) for loss in losses]
    return np.array(sums), np.array([float(len(loss)) for loss in losses])


def _mean(sums: NDArray[Any], tokens: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.asarray(sums.sum(axis=axis) / tokens.sum(axis=axis))


def _bootstrap(
    samples: tuple[NDArray[np.float64], ...],
    statistic: Callable[..., NDArray[Any]],
    confidence: float,
    seed: int,
) -> Drop:
    return Drop(*map(float, np.expm1(_with_bounds(samples, statistic, confidence, seed))))


def _with_bounds(
    samples: tuple[NDArray[np.float64], ...],
    statistic: Callable[..., NDArray[Any]],
    confidence: float,
    seed: int,
) -> tuple[float, float, float]:
    """A statistic of all samples, and its lower and upper bound."""
    value = float(statistic(*samples, axis=0))
    if len(samples[0]) < 2 or not samples[0].any():
        return value, value, value
    level = 2 * confidence - 1  # two-sided, so that each bound alone has our confidence
    for method in ("BCa", "percentile"):  # with few documents that differ, BCa may give no number
        low, high = _interval(samples, statistic, level, method, seed, n_resamples=RESAMPLES)
        if math.isfinite(low) and math.isfinite(high):
            break
    return value, min(low, value), max(high, value)


def _interval(
    samples: tuple[NDArray[np.float64], ...],
    statistic: Callable[..., Any],
    level: float,
    method: str,
    seed: int = 0,
    n_resamples: int = 9999,
) -> tuple[float, float]:
    from scipy.stats import bootstrap  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = bootstrap(
            samples,
            statistic,
            n_resamples=n_resamples,
            confidence_level=level,
            method=method,
            paired=True,
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)
