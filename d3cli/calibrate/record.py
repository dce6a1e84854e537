"""What a calibration found, as it is stored."""

from collections.abc import Sequence
from datetime import UTC, datetime

from d3cli import __version__
from d3cli.calibrate.draft_search import DraftOutcome
from d3cli.calibrate.result import Measured, Outcome
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import Sort
from d3cli.calibrate.texts import hash_documents
from d3cli.depth.calibration_record import Calibration, Rival, Unseen
from d3cli.depth.draft_record import DraftCalibration
from d3cli.scoring.documents import Document


def make_record(
    outcome: Outcome, settings: CalibrationSettings, source: str, documents: Sequence[Document]
) -> Calibration:
    """The chosen schedule and its figures.

    Args:
        source: where the text comes from.
    """
    assert outcome.chosen is not None
    chosen = outcome.chosen
    return Calibration(
        schedule=chosen.candidate.schedule,
        target_drop=settings.target_drop,
        confidence=settings.confidence,
        unseen=Unseen(
            documents=chosen.documents,
            drop=chosen.drop.value,
            drop_interval=(chosen.drop.low, chosen.drop.high),
            kl=chosen.kl,
            same_top=chosen.same_top,
            layer_ratio=chosen.layer_ratio,
            byte_ratio=chosen.byte_ratio,
        ),
        settings={
            "data": source,
            "units": settings.units,
            "order": settings.order,
            "reply_tokens": settings.reply_tokens,
            "seed": settings.seed,
            "seconds": round(outcome.seconds, 1),
            "cut": "; ".join(outcome.cut) or None,
        },
        data_hash=hash_documents(documents),
        version=__version__,
        date=_now(),
        against=outcome.against,
        why_not_as_stored=outcome.why_not_as_stored or None,
        speed=chosen.candidate.speed,
        rivals=tuple(_rival(outcome, sort, each) for sort, each in outcome.rivals.items()),
    )


def _rival(outcome: Outcome, sort: Sort, measured: Measured) -> Rival:
    candidate, drop = measured.candidate, measured.drop
    return Rival(
        sort=sort.value,
        form=outcome.form_of(candidate),
        schedule=candidate.schedule.in_words(),
        drop=drop.value,
        drop_interval=(drop.low, drop.high),
        byte_ratio=candidate.byte_ratio,
        speed=candidate.speed,
    )


def make_draft_record(
    outcome: DraftOutcome,
    settings: CalibrationSettings,
    source: str,
    documents: Sequence[Document],
) -> DraftCalibration:
    """The schedule that drafts best, and its figures; arguments as for `make_record`."""
    best = outcome.best
    return DraftCalibration(
        schedule=best.candidate.schedule,
        agreement=best.agreement,
        agreement_low=outcome.agreement_low,
        documents=outcome.documents,
        tokens=outcome.tokens,
        cost=best.candidate.cost,
        length=best.length,
        gain=best.gain,
        gain_low=outcome.gain_low,
        confidence=settings.confidence,
        settings={
            "data": source,
            "order": best.candidate.order,
            "reply_tokens": settings.reply_tokens,
            "seed": settings.seed,
            "seconds": round(outcome.seconds, 1),
        },
        data_hash=hash_documents(documents),
        version=__version__,
        date=_now(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
