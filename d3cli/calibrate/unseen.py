"""Candidates on the unseen half, measured while the model in their form is loaded.

What is measured here decides nothing yet: `confirm` reads it in the order of its test. Knows
nothing of how candidates were found.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from d3cli.calibrate.costs import StepCosts
from d3cli.calibrate.evaluator import finite_losses
from d3cli.calibrate.result import CalibrationProgress, Measured
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import Candidate, CandidateKey
from d3cli.calibrate.unit_order import mean_ratios
from d3cli.depth.schedule import TOLERANCE
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import drop_by_position, measure_drop
from d3cli.scoring.snapshot import Compared, Snapshot, compare_with


@dataclass(frozen=True, slots=True)
class UnseenHalf:
    """The unseen documents, and full depth on them.

    Attributes:
        reference: the costs of full depth in the form that it was read in.
    """

    documents: Sequence[Document]
    snapshots: Sequence[Snapshot]
    reference: StepCosts


def measure_unseen(
    model: LoadedModel,
    half: UnseenHalf,
    candidates: Sequence[Candidate],
    settings: CalibrationSettings,
    share: float,
) -> Generator[CalibrationProgress, None, dict[CandidateKey, Measured]]:
    """Compares candidates in the form of `model` with full depth on the unseen half.

    Args:
        share: of the work that is done, for progress.
    """
    each: dict[int, list[Compared]] = {}
    schedules = [candidate.schedule for candidate in candidates]
    for found in compare_with(model, half.documents, half.snapshots, schedules):
        each |= found
        doing = f"unseen text: {len(each)} of {len(half.documents)} documents"
        yield CalibrationProgress(doing, share)
    rows = range(len(half.documents))
    return {
        candidate.key: measured(
            model, half, candidate, [each[row][number] for row in rows], settings
        )
        for number, candidate in enumerate(candidates)
    }


def measured(
    model: LoadedModel,
    half: UnseenHalf,
    candidate: Candidate,
    compared: Sequence[Compared],
    settings: CalibrationSettings,
) -> Measured:
    """All figures of one candidate."""
    losses = [finite_losses(one.losses) for one in compared]
    tokens = sum(map(len, losses))
    schedules = [one.schedule for one in compared]
    at_floor = np.concatenate(
        [
            loss[[schedule.depth(t) <= schedule.floor + TOLERANCE for t in range(len(loss))]]
            if schedule.skip_order
            else loss[:0]
            for loss, schedule in zip(losses, schedules, strict=True)
        ]
    )
    layer_ratio, byte_ratio = mean_ratios(schedules, settings.reply_tokens, model.weight_bytes)
    surprise = -sum(float(one.log_probs.sum()) for one in half.snapshots)
    return Measured(
        candidate,
        losses,
        measure_drop(losses, settings.confidence),
        tuple(drop_by_position(losses)),
        kl=sum(float(one.kl.sum()) for one in compared) / tokens,
        same_top=sum(int(one.same_top.sum()) for one in compared) / tokens,
        mean_rank=sum(int(one.ranks.sum()) for one in compared) / tokens,
        full_perplexity=math.exp(surprise / tokens),
        floor_tokens=len(at_floor),
        floor_drop=math.expm1(float(at_floor.mean())) if len(at_floor) else 0.0,
        layer_ratio=layer_ratio,
        byte_ratio=byte_ratio * half.reference.weight_bytes.total / model.weight_bytes.total,
    )


Sealed = Mapping[CandidateKey, Measured]
