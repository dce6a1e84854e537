"""Where nothing was found: the smallest drop that saves anything, and what else is faster."""

import math
from dataclasses import replace

import pytest
import torch

from d3cli.base.errors import Setting
from d3cli.calibrate.alternatives import alternatives
from d3cli.calibrate.calibrator import Calibrator
from d3cli.calibrate.nearest import MARGIN, choose_nearest
from d3cli.calibrate.race import Tried
from d3cli.calibrate.result import Outcome, UnseenDrop
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import MIN_SAVED, Candidate
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Drop
from d3cli.scoring.one_pass import score
from tests.calibrate.test_calibrator import calibrator_of
from tests.families import random_ids, tiny
from tests.planted import sampled_documents

SETTINGS = CalibrationSettings(0.001, units="layer", order="influence", reply_tokens=30)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """A model in which every layer matters."""
    return tiny("llama").gated


@pytest.fixture(scope="module")
def texts(model: LoadedModel) -> list[Document]:
    return sampled_documents(model, [random_ids(5, seed=s) for s in range(40)], 40)


@pytest.fixture(scope="module")
def calibrated(model: LoadedModel, texts: list[Document]) -> Calibrator:
    calibrator = calibrator_of(model, texts, SETTINGS)
    list(calibrator)
    assert calibrator.outcome.chosen is None
    return calibrator


def test_the_nearest_schedule_saves_enough_and_costs_what_it_says(calibrated: Calibrator) -> None:
    nearest, half = calibrated.outcome.nearest, calibrated.plan.search
    assert nearest is not None and not nearest.on_unseen_text
    assert nearest.tried.candidate.saved >= MIN_SAVED
    full = DepthSchedule.full(calibrated.model.num_layers)
    schedule = nearest.tried.candidate.schedule
    ours, theirs = (
        torch.cat([one.log_probs for one in score(calibrated.model, half, each)]).mean()
        for each in (schedule, full)
    )
    assert nearest.tried.drop.value == pytest.approx(math.expm1(float(theirs - ours)), abs=1e-4)


def test_the_suggested_target_is_met(calibrated: Calibrator, texts: list[Document]) -> None:
    nearest = calibrated.outcome.nearest
    assert nearest is not None and nearest.target_drop is not None
    assert nearest.target_drop >= MARGIN * nearest.tried.drop.high
    again = calibrator_of(
        calibrated.model, texts, replace(SETTINGS, target_drop=nearest.target_drop)
    )
    list(again)
    assert again.outcome.chosen is not None
    assert again.outcome.nearest is None and not again.outcome.alternatives


def test_a_kind_of_units_without_time_for_a_search_is_looked_at_as_well(
    model: LoadedModel, texts: list[Document]
) -> None:
    calibrator = calibrator_of(model, texts, replace(SETTINGS, units="auto"))
    calibrator._plan = replace(calibrator.prepare(), kinds=("layer",))
    list(calibrator)
    kinds = {one.candidate.kind for one in calibrator.outcome.tried.values()}
    assert kinds == {"layer", "sublayer"}


def tried(ratio: float, value: float, layer: int = 1) -> Tried:
    schedule = static_schedule(tiny("llama").gated.weight_bytes, [str(layer)])
    return Tried(
        Candidate(schedule, "layer", ratio, ratio, 0.0), 8, Drop(value, value - 0.01, value)
    )


def outcome(*found: Tried) -> Outcome:
    return Outcome(tried={one.candidate.key: one for one in found})


def test_schedules_that_save_too_little_are_not_the_nearest() -> None:
    cheap, dear = tried(1.01, 0.02, layer=1), tried(1.2, 0.3, layer=2)
    found = choose_nearest(outcome(cheap, dear), 0.01)
    assert found is not None and found.tried == dear and found.target_drop == 0.4
    assert choose_nearest(outcome(cheap), 0.01) is None
    assert choose_nearest(Outcome(), 0.01) is None


def test_no_target_is_suggested_above_100_percent_or_below_the_one_that_was_missed() -> None:
    found = choose_nearest(outcome(tried(1.2, 0.9)), 0.01)
    assert found is not None and found.target_drop is None
    found = choose_nearest(outcome(tried(1.2, 0.01)), 0.05)
    assert found is not None and found.target_drop == 0.07


def test_a_drop_on_unseen_text_counts_more_than_one_on_the_search_half() -> None:
    one, other = tried(1.2, 0.02, layer=1), tried(1.2, 0.03, layer=2)
    found = outcome(one, other)
    found.tested = [UnseenDrop(one.candidate, Drop(0.05, 0.04, 0.06), False)]
    nearest = choose_nearest(found, 0.02)
    assert nearest is not None and nearest.tried == other
    found.tried.pop(other.candidate.key)
    nearest = choose_nearest(found, 0.02)
    assert nearest is not None and nearest.on_unseen_text
    assert nearest.tried.drop == Drop(0.05, 0.04, 0.06)


def test_4_bits_are_an_alternative_on_a_cpu() -> None:
    plain = load_model(dtype="bfloat16", device="cpu")
    [found] = alternatives(plain)
    assert found.setting == Setting("quantization", "int4")
    quantized = load_model(dtype="bfloat16", device="cpu", quantization="int4")
    measured = plain.weight_bytes.total / quantized.weight_bytes.total
    assert found.byte_ratio == pytest.approx(measured, rel=0.02)
    assert alternatives(quantized) == []


def test_a_mixture_of_experts_has_no_4_bits() -> None:
    assert alternatives(tiny("mixtral").gated) == []
