"""Calibration with each prompt's own order: what it scores is what replies then run."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from d3cli.base.errors import UsageError
from d3cli.calibrate.calibrator import Calibrator
from d3cli.calibrate.clock import SearchClock
from d3cli.calibrate.costs import StepCosts, Yardstick, costs_by_bytes
from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.record import make_record
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import StaticLosses, candidates, score_prefixes
from d3cli.calibrate.unit_order import mean_ratios, prompt_orders
from d3cli.decode.loop import decode_step, prefill
from d3cli.depth import calibration_store
from d3cli.depth.choice import Source, choose
from d3cli.depth.prompt_order import PromptSchedule, schedule_from_json
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import UnitKind
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.prompt_orders import MeasuredPrompt
from tests.families import random_ids, tiny
from tests.planted import IDLE, VOCAB, planted, sampled_documents
from tests.records import KEY

SETTINGS = CalibrationSettings(0.01, units="layer", order="prompt", reply_tokens=40)
SHORT = 3  # documents whose prompts are too short to decide an order


@cache
def texts() -> tuple[Document, ...]:
    """Documents with prompts of 20 tokens, sampled from the model, and a few with short ones."""
    model = planted()
    prompts = [[2 + id_ % (VOCAB - 2) for id_ in random_ids(20, seed=s)] for s in range(40)]
    found = sampled_documents(model, prompts, 48)
    short = sampled_documents(model, [prompt[:4] for prompt in prompts[:SHORT]], 48)
    return (*found, *short)


def by_prompt(model: LoadedModel, kind: UnitKind = "layer", most: int = 3) -> PromptSchedule:
    units = tuple(u for u in model.schedule(0.5, core_first=1, core_last=1, units=kind).units)
    weights = model.weight_bytes.weights(units)
    return PromptSchedule(model.num_layers, 0.97, 2, 1, 1, units, weights, most)


def few_entrants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short race: documents are scored one by one, which takes long with a small model."""
    for name, count in {"ENTRANTS": 4, "SECOND_ROUND": 3, "FINALISTS": 2}.items():
        monkeypatch.setattr(f"d3cli.calibrate.race.{name}", count)


def by_bytes(model: LoadedModel, _: Document) -> StepCosts:
    """The times of tiny models are noise."""
    return costs_by_bytes(model.weight_bytes, SETTINGS.reply_tokens - 1)


@pytest.fixture(scope="module")
def calibrated() -> Calibrator:
    calibrator = Calibrator(planted(), texts(), SETTINGS, costs=by_bytes)
    list(calibrator)
    return calibrator


def test_losses_are_those_of_each_documents_own_order() -> None:
    model = tiny("llama").gated
    documents = texts()[-6:]
    schedule = by_prompt(model, "sublayer")
    evaluator = Evaluator(model, documents, (6,), SearchClock(1e9))
    found = evaluator.losses(schedule, 6)
    for row, document in enumerate(documents):
        ordered = MeasuredPrompt(model, document.prompt_ids).ordered(schedule)
        [alone] = Evaluator(model, [document], (1,), SearchClock(1e9)).losses(ordered, 1)
        np.testing.assert_allclose(found[row], alone, atol=1e-5)
    assert all(np.abs(loss).max() < 1e-5 for loss in found[-SHORT:])  # at full depth
    assert all(np.abs(loss).max() > 1e-2 for loss in found[:-SHORT])


@pytest.mark.parametrize("kind", ["layer", "sublayer"])
def test_byte_ratios_are_those_of_the_mean_bytes(kind: UnitKind) -> None:
    model = tiny("llama").gated
    documents = texts()[-20:]
    evaluator = Evaluator(model, documents, (10, 20), SearchClock(1e9))
    units = by_prompt(model, kind).units
    orders = [one.skip_order for one in evaluator.ordered(by_prompt(model, kind, len(units)))]
    order = prompt_orders(costs_by_bytes(model.weight_bytes, 39), kind, units, orders)
    static = StaticLosses(order.first(3), list(score_prefixes(evaluator, order.first(3), 10, 1e9)))
    pool = candidates(static, Yardstick(order.costs, order.costs, 40))
    assert any(candidate.is_static for candidate in pool)
    for candidate in pool[::7]:
        reads = [
            1 / one.byte_ratio(40, model.weight_bytes, net_of_repair=True)
            for one in evaluator.ordered(candidate.schedule)
        ]
        # Sublayers differ in weight, so a prediction from mean weights is only near.
        tolerance = 1e-6 if kind == "layer" else 0.02
        assert candidate.byte_ratio == pytest.approx(len(reads) / sum(reads), rel=tolerance)


def test_a_constant_depth_drops_all_its_units_at_once_in_every_order() -> None:
    model = tiny("llama").gated
    evaluator = Evaluator(model, texts()[:8], (8,), SearchClock(1e9))
    for kind in ("layer", "sublayer"):
        units = by_prompt(model, kind).units
        orders = [one.skip_order for one in evaluator.ordered(by_prompt(model, kind, len(units)))]
        order = prompt_orders(costs_by_bytes(model.weight_bytes, 39), kind, units, orders)
        for count in range(1, order.places):
            for schedule in evaluator.ordered(order.static(count)):
                assert schedule.num_dropped(1) == count


def test_idle_layers_are_found_by_every_prompt(calibrated: Calibrator) -> None:
    chosen = calibrated.outcome.chosen
    assert chosen is not None
    schedule = chosen.candidate.schedule
    assert isinstance(schedule, PromptSchedule)
    assert schedule.max_dropped == len(IDLE)
    assert calibrated.outcome.short_prompts > 0
    ordered = [
        MeasuredPrompt(calibrated.model, document.prompt_ids).ordered(schedule)
        for document in calibrated.plan.unseen
    ]
    assert {frozenset(one.skip_order) for one in ordered} <= {
        frozenset(map(str, IDLE)),
        frozenset(),
    }
    ratios = mean_ratios(ordered, 40, calibrated.model.weight_bytes)
    assert (chosen.layer_ratio, chosen.byte_ratio) == pytest.approx(ratios)
    assert not calibrated.outcome.orders  # there is no order for all prompts


@torch.inference_mode()
def log_probs_by_decoding(
    model: LoadedModel, document: Document, schedule: DepthSchedule
) -> list[float]:
    cache = model.new_cache()
    for chunk in prefill(model, cache, document.prompt_ids):
        logits = model.logits(chunk.hidden[-1])
    found = []
    for step, token in enumerate(document.response_ids):
        if step:
            previous = document.response_ids[step - 1]
            logits = decode_step(model, cache, previous, schedule.dropped(step))
        found.append(float(logits.double().log_softmax(-1)[token]))
    return found


@pytest.mark.slow
def test_the_drop_found_is_that_of_decoding_each_prompt_in_its_own_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_entrants(monkeypatch)
    settings = replace(SETTINGS, target_drop=0.2)
    calibrator = Calibrator(planted(), texts()[-34:], settings, costs=by_bytes)
    list(calibrator)
    model, chosen = calibrator.model, calibrator.outcome.chosen
    assert chosen is not None and isinstance(chosen.candidate.schedule, PromptSchedule)
    ours: list[float] = []
    full: list[float] = []
    for document in calibrator.plan.unseen:
        ordered = MeasuredPrompt(model, document.prompt_ids).ordered(chosen.candidate.schedule)
        ours += log_probs_by_decoding(model, document, ordered)
        full += log_probs_by_decoding(model, document, DepthSchedule.full(model.num_layers))
    drop = math.expm1(math.fsum(full) / len(full) - math.fsum(ours) / len(ours))
    assert drop == pytest.approx(chosen.drop.value, abs=1e-5)


def test_both_kinds_of_orders_stand_in_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    few_entrants(monkeypatch)
    settings = replace(SETTINGS, order="auto")
    calibrator = Calibrator(planted(), texts(), settings, costs=by_bytes)
    list(calibrator)
    outcome = calibrator.outcome
    assert {one.candidate.by_prompt for one in outcome.tried.values()} == {True, False}
    assert outcome.chosen is not None
    held = [one.candidate.byte_ratio for one in outcome.tested if one.held]
    assert outcome.chosen.candidate.byte_ratio == max(held)


def test_prompts_too_short_to_decide_an_order_are_not_searched_by_it() -> None:
    short = [replace(document, prompt_ids=document.prompt_ids[:5]) for document in texts()]
    with pytest.raises(UsageError, match="too few to decide an order"):
        Calibrator(planted(), short, SETTINGS).prepare()
    calibrator = Calibrator(planted(), short, replace(SETTINGS, order="auto"))
    assert not calibrator.prepare().by_prompt and not calibrator.plan.left_out


def test_what_was_found_is_stored_read_and_used(calibrated: Calibrator) -> None:
    found = make_record(calibrated.outcome, SETTINGS, "built-in", texts())
    path = calibration_store.save(KEY, found)
    assert '"schema": 3' in path.read_text()  # d3 0.1.0 says that a newer d3 wrote it
    assert calibration_store.find(KEY) == found
    choice = choose(calibrated.model.weight_bytes, stored=found.schedule, calibration=found)
    assert choice.source is Source.CALIBRATION and choice.schedule == found.schedule
    changed = choose(
        calibrated.model.weight_bytes, 0.5, core_first=3, stored=found.schedule, calibration=found
    )
    assert changed.source is Source.FLAGS
    assert isinstance(changed.schedule, PromptSchedule)
    assert changed.schedule.units == tuple(u for u in found.schedule.units if int(u) >= 3)


@pytest.mark.parametrize(
    "damage",
    [
        {"order": "another"},
        {"max_dropped": 99},
        {"max_dropped": -2},
        {"units": ["1", "1"]},
        {"alpha": 0},
        {"weights": [1.0]},
    ],
)
def test_a_damaged_schedule_is_refused(damage: dict) -> None:
    good = by_prompt(tiny("llama").gated).to_json()
    assert schedule_from_json(good) == by_prompt(tiny("llama").gated)
    with pytest.raises(UsageError):
        schedule_from_json(good | damage)
    for name in good.keys() - {"order"}:
        with pytest.raises(UsageError):
            schedule_from_json({key: value for key, value in good.items() if key != name})
