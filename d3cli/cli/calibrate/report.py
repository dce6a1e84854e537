"""A calibration's outcome as rows for people, as JSON, as CSV and as a plot."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3cli.base.amounts import signed_percent
from d3cli.base.errors import spelled
from d3cli.cli.output import flag
from d3cli.depth.choice import Source

if TYPE_CHECKING:
    from d3cli.calibrate.race import Tried
    from d3cli.calibrate.result import CalibrationSettings, DecayVerdict, Judged, Measured, Outcome
    from d3cli.calibrate.space import Candidate
    from d3cli.model.model import LoadedModel
    from d3cli.scoring.intervals import Drop

SCHEMA = 1
DOUBTFUL_KL = 5  # times the target, in nats
PLOT_HEIGHT, WIDEST_PLOT, NARROWEST_PLOT = 14, 72, 20
PLOT_MARGIN = 36  # the labels of both axes
KINDS = {"layer": "whole layers", "sublayer": "sublayers"}


def facts(
    outcome: "Outcome", settings: "CalibrationSettings", model: "LoadedModel"
) -> list[tuple[str, str]]:
    """Rows of a name and a value."""
    rows: list[tuple[str, str]] = [
        (
            "asked",
            f"at most {signed_percent(settings.target_drop)} perplexity, with "
            f"{100 * settings.confidence:g}% confidence",
        )
    ]
    chosen = outcome.chosen
    if chosen is None:
        rows.append(("chosen", f"nothing: {spelled(outcome.why_not, flag)}"))
    else:
        schedule = chosen.candidate.schedule
        steps = settings.reply_tokens
        rows += [
            ("chosen", f"{KINDS[chosen.candidate.kind]}: {schedule.in_words()}"),
            ("skip order", " ".join(schedule.skip_order)),
            (
                f"replies of {steps} tokens",
                f"layers {schedule.layer_ratio(steps):.2f}×, bytes "
                f"{schedule.byte_ratio(steps, model.weight_bytes):.2f}×, "
                f"{chosen.candidate.byte_ratio:.2f}× net of repair",
            ),
            (
                "on unseen text",
                f"{_bounds(chosen.drop)} perplexity; {chosen.documents} documents, "
                f"{chosen.tokens:,} tokens",
            ),
        ]
        rows += [
            (f"  tokens {begin} to {end}", f"{signed_percent(drop)} ({tokens:,} tokens)")
            for begin, end, tokens, drop in chosen.by_position
        ]
        rows.append(
            (
                "  beside full depth",
                f"KL {chosen.kl:.4f} nats a token, same top choice {chosen.same_top:.1%}; its own "
                f"perplexity {chosen.full_perplexity:.4g}",
            )
        )
        rows.append(
            (
                "  at the least depth",
                f"{signed_percent(chosen.floor_drop)} ({chosen.floor_tokens:,} tokens)",
            )
        )
        longest = chosen.by_position[-1][1]
        if settings.reply_tokens > longest:
            rows.append(
                (
                    "  mind",
                    f"no reply scored is longer than {longest} tokens; behind them, replies of "
                    f"{settings.reply_tokens} run at the least depth",
                )
            )
        if chosen.kl > DOUBTFUL_KL * math.log1p(settings.target_drop):
            rows.append(("  mind", "KL is far beyond the target: try --self-replies"))
    rows += _best_of_kinds(outcome, settings)
    if outcome.verdict is not None:
        rows += [
            ("constant depth", _measured(outcome.verdict.static)),
            ("decaying depth", _measured(outcome.verdict.decaying)),
            ("did decay pay?", f"{outcome.verdict.words}: {_bounds(outcome.verdict.difference)}"),
        ]
    rows += [(f"replies by {name}", _judged(judged)) for name, judged in outcome.judged.items()]
    if outcome.verdict is not None:
        rows.append(("  by replies", _by_replies(outcome.verdict)))
    elif outcome.no_verdict:
        rows.append(("did decay pay?", outcome.no_verdict))
    rows += [
        (f"order of {kind}s", " ".join(order) or "none can be dropped")
        for kind, order in outcome.orders.items()
    ]
    rows += [
        (
            f"influence of {kind}s",
            " ".join(f"{unit}:{value:.4f}" for unit, value in influence),
        )
        for kind, influence in _influence(outcome)
    ]
    rows.append(("took", f"{outcome.seconds:.0f} s"))
    rows += [("cut for time", cut) for cut in outcome.cut]
    return rows


def _by_replies(verdict: "DecayVerdict") -> str:
    from d3cli.calibrate.result import decay_paid

    if verdict.by_replies is None:
        return "not asked: --replies lets D³ write replies, and full depth judge them"
    return f"{decay_paid(verdict.by_replies)}: {_bounds(verdict.by_replies)}"


def _influence(outcome: "Outcome") -> Iterator[tuple[str, list[tuple[str, float]]]]:
    for kind in ("layer", "sublayer"):
        found = [
            (unit, value)
            for unit, value in outcome.influence.items()
            if ("." in unit) == (kind == "sublayer")
        ]
        if found:
            yield kind, sorted(found, key=lambda pair: pair[1])


def _best_of_kinds(
    outcome: "Outcome", settings: "CalibrationSettings"
) -> Iterator[tuple[str, str]]:
    for kind in outcome.orders:
        best = outcome.best(kind, settings.target_drop)
        text = "none held" if best is None else f"bytes {best.candidate.byte_ratio:.2f}× net"
        if best is not None:
            text += f", {_bounds(best.drop)}"
        yield f"best of {KINDS[kind]}", f"{text} (search half)"


def _bounds(drop: "Drop") -> str:
    return (
        f"{signed_percent(drop.value)} ({signed_percent(drop.low)} to {signed_percent(drop.high)})"
    )


def _measured(measured: "Measured") -> str:
    candidate = measured.candidate
    return (
        f"{_bounds(measured.drop)}, KL {measured.kl:.4f}, same top choice "
        f"{measured.same_top:.1%}, bytes {candidate.byte_ratio:.2f}× net "
        f"({KINDS[candidate.kind]}: {candidate.schedule.in_words()})"
    )


def _judged(judged: "Judged") -> str:
    text = (
        f"full depth's perplexity {judged.perplexity:.3f} on {judged.prompts} replies, "
        f"{judged.tokens:,} tokens"
    )
    return text if judged.rise is None else f"{text}: {_bounds(judged.rise)}"


def plot(outcome: "Outcome", settings: "CalibrationSettings", width: int) -> str:
    """Everything that was tried: drop against byte ratio. Empty where there is nothing to see."""
    import plotille

    tried = list(outcome.tried.values())
    if not tried or width < NARROWEST_PLOT + PLOT_MARGIN:
        return ""
    ratios = [t.candidate.byte_ratio for t in tried]
    highest = max(2 * settings.target_drop, *(t.drop.value for t in tried if t.drop.value < 10))
    figure = plotille.Figure()
    figure.with_colors = False
    figure.width, figure.height = min(width - PLOT_MARGIN, WIDEST_PLOT), PLOT_HEIGHT
    figure.x_label, figure.y_label = "byte ratio, net", "drop"
    figure.set_x_limits(min(ratios), max([*ratios, min(ratios) + 0.01]))
    figure.set_y_limits(min(0.0, *(t.drop.value for t in tried)), highest)
    figure.x_ticks_fkt = lambda value, _: f"{value:.2f}×"
    figure.y_ticks_fkt = lambda value, _: signed_percent(value)
    figure.plot([min(ratios), max(ratios)], [settings.target_drop] * 2)
    for kind, marker in (("layer", "o"), ("sublayer", "x")):
        points = [t for t in tried if t.candidate.kind == kind and math.isfinite(t.drop.value)]
        figure.scatter(
            [t.candidate.byte_ratio for t in points], [t.drop.value for t in points], marker=marker
        )
    legend = "o whole layers, x sublayers (search half); the line is the target"
    if outcome.chosen is not None:
        figure.scatter(
            [outcome.chosen.candidate.byte_ratio], [outcome.chosen.drop.value], marker="#"
        )
        legend += "; # the chosen one on unseen text"
    return f"{figure.show()}\n{legend}"


def as_json(
    outcome: "Outcome", settings: "CalibrationSettings", model: "LoadedModel", stored: Path | None
) -> dict[str, Any]:
    """The documented object: docs/calibration.md."""
    chosen = outcome.chosen
    steps = settings.reply_tokens

    def measured(one: "Measured") -> dict[str, Any]:
        schedule = one.candidate.schedule
        return {
            "documents": one.documents,
            "tokens": one.tokens,
            "drop": one.drop.value,
            "drop_interval": [one.drop.low, one.drop.high],
            "kl": one.kl,
            "same_top": one.same_top,
            "mean_rank": one.mean_rank,
            "full_perplexity": one.full_perplexity,
            "least_depth": {"tokens": one.floor_tokens, "drop": one.floor_drop},
            "layer_ratio": schedule.layer_ratio(steps),
            "byte_ratio": schedule.byte_ratio(steps, model.weight_bytes),
            "byte_ratio_net": one.candidate.byte_ratio,
            "by_position": [
                {"begin": begin, "end": end, "tokens": tokens, "drop": drop}
                for begin, end, tokens, drop in one.by_position
            ],
        }

    verdict = outcome.verdict
    return {
        "schema": SCHEMA,
        "schedule": None
        if chosen is None
        else chosen.candidate.schedule.to_json() | {"source": Source.CALIBRATION},
        "stored": None if stored is None else str(stored),
        "target_drop": settings.target_drop,
        "confidence": settings.confidence,
        "unseen": None if chosen is None else measured(chosen),
        "frontier": [
            _tried(t) for t in sorted(outcome.tried.values(), key=lambda t: t.candidate.byte_ratio)
        ],
        "tested": [
            _candidate(candidate) | _drop(drop) | {"held": held}
            for candidate, drop, held in outcome.tested
        ],
        "no_verdict": outcome.no_verdict or None,
        "decay": None
        if verdict is None
        else {
            "constant": _candidate(verdict.static.candidate) | measured(verdict.static),
            "decaying": _candidate(verdict.decaying.candidate) | measured(verdict.decaying),
            "difference": _drop(verdict.difference),
            "verdict": verdict.words,
            "by_replies": None if verdict.by_replies is None else _drop(verdict.by_replies),
        },
        "replies": {
            name: {"prompts": j.prompts, "tokens": j.tokens, "perplexity": j.perplexity}
            | {"rise": None if j.rise is None else _drop(j.rise)}
            for name, j in outcome.judged.items()
        },
        "orders": {kind: list(order) for kind, order in outcome.orders.items()},
        "influence": outcome.influence,
        "settings": asdict(settings),
        "why_not": spelled(outcome.why_not, flag) or None,
        "cut": outcome.cut,
        "seconds": outcome.seconds,
    }


def csv_rows(outcome: "Outcome") -> Iterator[tuple[object, ...]]:
    """A header, then every candidate that was tried on the search half."""
    yield (
        "units",
        "alpha",
        "start",
        "floor",
        "skip_order",
        "byte_ratio_net",
        "documents",
        "drop",
        "drop_low",
        "drop_high",
        "chosen",
    )
    chosen = None if outcome.chosen is None else outcome.chosen.candidate.schedule
    for tried in sorted(outcome.tried.values(), key=lambda t: t.candidate.byte_ratio):
        candidate, schedule = tried.candidate, tried.candidate.schedule
        yield (
            candidate.kind,
            schedule.alpha,
            schedule.start,
            round(schedule.floor, 6),
            " ".join(schedule.skip_order),
            candidate.byte_ratio,
            tried.documents,
            tried.drop.value,
            tried.drop.low,
            tried.drop.high,
            int(schedule == chosen),
        )


def _candidate(candidate: "Candidate") -> dict[str, Any]:
    return {
        "units": candidate.kind,
        "schedule": candidate.schedule.to_json(),
        "byte_ratio_net": candidate.byte_ratio,
    }


def _tried(tried: "Tried") -> dict[str, Any]:
    return _candidate(tried.candidate) | {"documents": tried.documents} | _drop(tried.drop)


def _drop(drop: "Drop") -> dict[str, Any]:
    return {"drop": drop.value, "drop_interval": [drop.low, drop.high]}
