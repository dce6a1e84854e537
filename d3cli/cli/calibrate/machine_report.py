"""A calibration's outcome as JSON and as CSV; docs/calibration.md documents both."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3cli.base.errors import spelled
from d3cli.cli.calibrate.task import TaskReport
from d3cli.cli.output import flag
from d3cli.depth.choice import Source

if TYPE_CHECKING:
    from d3cli.calibrate.race import Tried
    from d3cli.calibrate.result import DecayVerdict, FormTried, Measured, Nearest, Outcome
    from d3cli.calibrate.settings import CalibrationSettings
    from d3cli.calibrate.space import Candidate
    from d3cli.scoring.intervals import Drop

SCHEMA = 1


def as_json(
    outcome: "Outcome",
    settings: "CalibrationSettings",
    stored: Path | None,
    task: TaskReport | None = None,
) -> dict[str, Any]:
    """The object that ``--json`` prints; `stored` is the file that holds the result."""
    chosen = outcome.chosen
    schedule = None
    if chosen is not None:
        schedule = chosen.candidate.schedule.to_json() | {"source": Source.CALIBRATION}
    return {
        "schema": SCHEMA,
        "schedule": schedule,
        "quantization": None if chosen is None else chosen.candidate.quantization,
        "stored": None if stored is None else str(stored),
        "target_drop": settings.target_drop,
        "confidence": settings.confidence,
        "against": outcome.against,
        "why_not_as_stored": outcome.why_not_as_stored or None,
        "forms": [_form(form) for form in outcome.forms],
        "unseen": None if chosen is None else _measured(chosen),
        "frontier": [_tried(tried) for tried in _by_byte_ratio(outcome)],
        "tested": [
            _candidate(candidate) | _drop(drop) | {"held": held}
            for candidate, drop, held in outcome.tested
        ],
        "rivals": {
            sort.value: _candidate(one.candidate) | _measured(one)
            for sort, one in outcome.rivals.items()
        },
        "no_verdict": outcome.no_verdict or None,
        "decay": _decay(outcome.verdict) if outcome.verdict else None,
        "replies": {
            name: {"prompts": j.prompts, "tokens": j.tokens, "perplexity": j.perplexity}
            | {"rise": None if j.rise is None else _drop(j.rise)}
            for name, j in outcome.judged.items()
        },
        "orders": {kind: list(order) for kind, order in outcome.orders.items()},
        "influence": outcome.influence,
        "short_prompts": outcome.short_prompts,
        "settings": asdict(settings),
        "why_not": spelled(outcome.why_not, flag) or None,
        "nearest": None if outcome.nearest is None else _nearest(outcome.nearest),
        "alternatives": [
            {one.setting.name: one.setting.value, "byte_ratio": one.byte_ratio}
            for one in outcome.alternatives
        ],
        "task": None if task is None else task.to_json(),
        "cut": outcome.cut,
        "seconds": outcome.seconds,
    }


def _measured(measured: "Measured") -> dict[str, Any]:
    """A schedule on the unseen half."""
    return {
        "documents": measured.documents,
        "tokens": measured.tokens,
        "drop": measured.drop.value,
        "drop_interval": [measured.drop.low, measured.drop.high],
        "kl": measured.kl,
        "same_top": measured.same_top,
        "mean_rank": measured.mean_rank,
        "full_perplexity": measured.full_perplexity,
        "least_depth": {"tokens": measured.floor_tokens, "drop": measured.floor_drop},
        "layer_ratio": measured.layer_ratio,
        "byte_ratio": measured.byte_ratio,
        "byte_ratio_net": measured.candidate.byte_ratio,
        "speed": measured.candidate.speed,
        "by_position": [
            {"begin": begin, "end": end, "tokens": tokens, "drop": drop}
            for begin, end, tokens, drop in measured.by_position
        ],
    }


def _decay(verdict: "DecayVerdict") -> dict[str, Any]:
    static, decaying = verdict.static, verdict.decaying
    return {
        "constant": _candidate(static.candidate) | _measured(static),
        "decaying": _candidate(decaying.candidate) | _measured(decaying),
        "difference": _drop(verdict.difference),
        "verdict": verdict.words,
        "by_replies": None if verdict.by_replies is None else _drop(verdict.by_replies),
    }


def _by_byte_ratio(outcome: "Outcome") -> list["Tried"]:
    return sorted(outcome.tried.values(), key=lambda tried: tried.candidate.byte_ratio)


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
        "order",
        "quantization",
        "speed",
    )
    chosen = None if outcome.chosen is None else outcome.chosen.candidate.key
    for tried in _by_byte_ratio(outcome):
        candidate, schedule = tried.candidate, tried.candidate.schedule
        yield (
            candidate.kind or "full",
            schedule.alpha,
            schedule.start,
            round(schedule.floor, 6),
            " ".join(() if candidate.by_prompt else schedule.units),
            candidate.byte_ratio,
            tried.documents,
            tried.drop.value,
            tried.drop.low,
            tried.drop.high,
            int(candidate.key == chosen),
            "prompt" if candidate.by_prompt else "fixed",
            candidate.quantization or "none",
            candidate.speed,
        )


def _candidate(candidate: "Candidate") -> dict[str, Any]:
    return {
        "units": candidate.kind,
        "schedule": candidate.schedule.to_json(),
        "quantization": candidate.quantization,
        "byte_ratio_net": candidate.byte_ratio,
        "speed": candidate.speed,
    }


def _form(form: "FormTried") -> dict[str, Any]:
    """A form of the weights at full depth, on the search half."""
    candidate = form.full.candidate
    return {
        "quantization": form.quantization,
        "form": form.form,
        "step_seconds": form.step_seconds,
        "byte_ratio": candidate.byte_ratio,
        "speed": candidate.speed,
        "searched": form.searched,
        "dominated_by": form.dominated_by or None,
    } | _drop(form.full.drop)


def _tried(tried: "Tried") -> dict[str, Any]:
    return _candidate(tried.candidate) | {"documents": tried.documents} | _drop(tried.drop)


def _nearest(nearest: "Nearest") -> dict[str, Any]:
    return _tried(nearest.tried) | {
        "on_unseen_text": nearest.on_unseen_text,
        "accepting_target": nearest.target_drop,
    }


def _drop(drop: "Drop") -> dict[str, Any]:
    return {"drop": drop.value, "drop_interval": [drop.low, drop.high]}
