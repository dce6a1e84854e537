"""The whole search: it finds known answers, and promises only what it measured."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from d3cli.base.errors import CalibrationError, UsageError, spelled
from d3cli.calibrate.calibrator import Calibrator
from d3cli.calibrate.clock import SearchClock
from d3cli.calibrate.costs import StepCosts, costs_by_bytes
from d3cli.calibrate.judge import judge, surprise
from d3cli.calibrate.own_replies import self_replies
from d3cli.calibrate.result import Outcome
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.texts import builtin_samples, choose, encode_samples
from d3cli.decode.loop import decode_step, prefill
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.families import random_ids, tiny
from tests.planted import IDLE, QUIET, documents, planted, sampled_documents


def calibrator_of(
    model: LoadedModel, texts: list[Document], settings: CalibrationSettings, **options: object
) -> Calibrator:
    """One that predicts times by bytes: those of tiny models are noise."""

    def costs(model: LoadedModel, _: Document) -> StepCosts:
        return costs_by_bytes(model.weight_bytes, settings.reply_tokens - 1)

    return Calibrator(model, texts, settings, costs=costs, **options)


def outcome_of(
    model: LoadedModel, texts: list[Document], settings: CalibrationSettings, **options: object
) -> Outcome:
    calibrator = calibrator_of(model, texts, settings, **options)
    shares = [progress.share for progress in calibrator]
    assert all(0 <= share <= 1 for share in shares)
    return calibrator.outcome


@pytest.fixture(scope="module")
def planted_outcome() -> Outcome:
    return outcome_of(planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=40))


def test_the_search_drops_every_idle_layer(planted_outcome: Outcome) -> None:
    model, chosen = planted(), planted_outcome.chosen
    assert chosen is not None
    allowed = static_schedule(model.weight_bytes, [str(layer) for layer in IDLE])
    reached = chosen.candidate.schedule.byte_ratio(40, model.weight_bytes)
    # Sublayers keep the norms of an idle layer, which are tiny.
    assert reached >= 0.999 * allowed.byte_ratio(40, model.weight_bytes)
    assert chosen.drop.high <= 0.01


def test_important_layers_are_kept(planted_outcome: Outcome) -> None:
    assert planted_outcome.chosen is not None
    dropped = planted_outcome.chosen.candidate.schedule.skip_order
    assert not {str(QUIET), f"{QUIET}.mlp"} & set(dropped)


def test_both_kinds_of_units_are_reported(planted_outcome: Outcome) -> None:
    assert set(planted_outcome.orders) == {"layer", "sublayer"}
    assert all(planted_outcome.best(kind, 0.01) for kind in planted_outcome.orders)
    assert len(planted_outcome.influence) == 7 + 14


def test_the_same_seed_gives_the_same_result(planted_outcome: Outcome) -> None:
    again = outcome_of(planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=40))
    assert replace(again, seconds=0) == replace(planted_outcome, seconds=0)


def test_the_last_schedule_that_held_on_unseen_text_is_chosen(planted_outcome: Outcome) -> None:
    tested = planted_outcome.tested
    ratios = [candidate.byte_ratio for candidate, _, _ in tested]
    assert ratios == sorted(ratios)  # from the safest to the fastest
    held = [candidate for candidate, _, held in tested if held]
    assert planted_outcome.chosen is not None
    assert held[-1] == planted_outcome.chosen.candidate
    assert [ok for _, _, ok in tested] == sorted((ok for _, _, ok in tested), reverse=True)
    assert all((drop.high <= 0.01) == held for _, drop, held in tested)


def test_the_halves_share_no_document() -> None:
    calibrator = calibrator_of(
        planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=40)
    )
    search, unseen = calibrator.plan.search, calibrator.plan.unseen
    assert len(search) + len(unseen) == len(documents())
    assert not {id(d) for d in search} & {id(d) for d in unseen}


def test_constructing_does_not_run_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedModel, "hidden_states", lambda *_, **__: pytest.fail("it ran"))
    calibrator = calibrator_of(
        planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=40)
    )
    with pytest.raises(UsageError, match="too little text"):
        Calibrator(planted(), list(documents())[:20], CalibrationSettings(0.01, reply_tokens=40))
    assert next(iter(calibrator)).doing == "measuring the model's pace"
    with pytest.raises(pytest.fail.Exception):
        calibrator.prepare()


def test_the_plan_is_made_once() -> None:
    calibrator = calibrator_of(
        planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=40)
    )
    prepared = calibrator.prepare()
    assert calibrator.plan is prepared
    assert next(iter(calibrator)).doing == "decode steps"
    assert calibrator.plan is prepared


def test_nothing_is_chosen_if_every_layer_matters() -> None:
    model = tiny("llama").gated
    texts = sampled_documents(model, [random_ids(5, seed=s) for s in range(40)], 40)
    outcome = outcome_of(model, texts, CalibrationSettings(0.001, reply_tokens=30))
    assert outcome.chosen is None
    assert outcome.why_not


def test_a_search_without_time_is_an_error() -> None:
    calibrator = calibrator_of(
        planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=40)
    )
    calibrator._plan = replace(calibrator.prepare(), search_deadline=0.0)
    with pytest.raises(CalibrationError, match="before any schedule was tried"):
        list(calibrator)


@pytest.mark.parametrize(
    ("share", "slower", "cut"),
    [
        (0.3, 1, "only layers are searched and the order is by influence"),
        (0.7, 1, "the order is by influence"),
        (0.7, 12, "the search through sublayers ended early"),
        (1.1, 12, "the order of layers is greedy in part"),
    ],
)
def test_a_search_cut_short_tests_what_it_has_and_says_so(
    monkeypatch: pytest.MonkeyPatch, share: float, slower: int, cut: str
) -> None:
    # The clock counts the positions scored, so that a busy machine changes nothing.
    monkeypatch.setattr("d3cli.calibrate.calibrator.measure_pace", lambda model, texts: 1.0)
    monkeypatch.setattr(SearchClock, "elapsed", property(lambda clock: slower * clock.scored))
    monkeypatch.setattr(Calibrator, "_more_thorough", lambda *_: None)
    settings = CalibrationSettings(0.01, reply_tokens=40, max_seconds=1e9)
    whole = calibrator_of(planted(), list(documents()), settings).plan.positions
    short = replace(settings, max_seconds=share * whole)
    outcome = outcome_of(planted(), list(documents()), short)
    assert cut in " and ".join(outcome.cut)
    assert outcome.chosen is not None and outcome.chosen.drop.high <= 0.01


def test_a_short_search_that_found_nothing_is_not_out_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("d3cli.calibrate.calibrator.measure_pace", lambda model, texts: 1.0)
    monkeypatch.setattr(SearchClock, "elapsed", property(lambda clock: clock.scored))
    monkeypatch.setattr(Calibrator, "_more_thorough", lambda *_: None)
    model = tiny("llama").gated
    texts = sampled_documents(model, [random_ids(5, seed=s) for s in range(40)], 40)
    settings = CalibrationSettings(0.0001, reply_tokens=30, max_seconds=1e9)
    whole = calibrator_of(model, texts, settings).plan.positions
    outcome = outcome_of(model, texts, replace(settings, max_seconds=0.7 * whole))
    assert outcome.cut  # the search was not complete
    assert outcome.chosen is None
    assert outcome.why_not
    assert outcome.nearest is not None
    assert len(outcome.tried) == 2  # one of each kind, scored after the search


@pytest.mark.parametrize(
    "bad",
    [
        {"target_drop": 0},
        {"target_drop": -0.1},
        {"target_drop": 1.01},
        {"target_drop": math.nan},
        {"confidence": 0.5},
        {"confidence": 1},
        {"confidence": math.nan},
        {"reply_tokens": 1},
        {"max_seconds": 0},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        CalibrationSettings(**{"target_drop": 0.01} | bad)


def test_a_family_without_sublayers_is_searched_by_layers_alone() -> None:
    model = tiny("opt").gated
    texts = [Document(random_ids(4, seed=s), random_ids(40, seed=100 + s)) for s in range(32)]
    with pytest.raises(UsageError, match="no separate sublayers"):
        Calibrator(model, texts, CalibrationSettings(0.5, units="sublayer"))
    outcome = outcome_of(model, texts, CalibrationSettings(0.5, reply_tokens=20))
    assert list(outcome.orders) == ["layer"]


def test_schedules_that_save_less_than_a_repair_costs_are_not_chosen() -> None:
    outcome = outcome_of(planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=2))
    assert outcome.chosen is None
    assert "save no time, net of repair" in spelled(outcome.why_not)
    assert outcome.nearest is None  # one decode step saves less than its repair costs


def test_text_that_does_not_suit_the_model_is_refused() -> None:
    model = planted()
    unlikely = [
        Document(d.prompt_ids, [2 + i % 59 for i in random_ids(40, seed=n)])
        for n, d in enumerate(documents())
    ]
    settings = CalibrationSettings(0.05, units="layer", order="influence", reply_tokens=40)
    outcome = outcome_of(model, unlikely, settings)
    assert outcome.chosen is None
    assert "the text does not suit the model" in spelled(outcome.why_not)


# The drop and the replies.


@torch.inference_mode()
def log_probs_step_by_step(
    model: LoadedModel, document: Document, schedule: DepthSchedule
) -> list[float]:
    cache = model.new_cache()
    for chunk in prefill(model, cache, document.prompt_ids):
        logits = model.logits(chunk.hidden[-1])
    found = [float(logits.double().log_softmax(-1)[document.response_ids[0]])]
    pairs = zip(document.response_ids[:-1], document.response_ids[1:], strict=True)
    for step, (previous, token) in enumerate(pairs, start=1):
        logits = decode_step(model, cache, previous, schedule.dropped(step))
        found.append(float(logits.double().log_softmax(-1)[token]))
    return found


def check_drop_by_decoding(calibrator: Calibrator) -> None:
    """The chosen schedule's drop is that of decoding the unseen half token by token."""
    for _ in calibrator:
        pass
    model, chosen = calibrator.model, calibrator.outcome.chosen
    assert chosen is not None
    schedules = (chosen.candidate.schedule, DepthSchedule.full(model.num_layers))
    ours, full = (
        [
            value
            for document in calibrator.plan.unseen
            for value in log_probs_step_by_step(model, document, schedule)
        ]
        for schedule in schedules
    )
    assert len(ours) == chosen.tokens
    drop = math.expm1(math.fsum(full) / len(full) - math.fsum(ours) / len(ours))
    assert drop == pytest.approx(chosen.drop.value, abs=1e-5)
    assert abs(drop) > 1e-4  # else only idle units were dropped


def test_the_drop_found_is_that_of_decoding_token_by_token() -> None:
    settings = CalibrationSettings(0.2, units="sublayer", order="influence", reply_tokens=40)
    check_drop_by_decoding(calibrator_of(planted(), documents(32, 34), settings))


@pytest.fixture(scope="module")
def builtin() -> LoadedModel:
    return load_model(dtype="float32", device="cpu")


@pytest.mark.slow
def test_the_drop_found_for_the_built_in_model_is_that_of_decoding(builtin: LoadedModel) -> None:
    texts = choose(encode_samples(builtin, builtin_samples(builtin)), 32, 3)
    settings = CalibrationSettings(0.03, units="layer", order="influence", reply_tokens=128)
    check_drop_by_decoding(calibrator_of(builtin, texts, settings))


def test_replies_are_judged_against_full_depths_own(builtin: LoadedModel) -> None:
    full = DepthSchedule.full(16)
    prompts = [Document(builtin.tokenizer(text)["input_ids"], [1]) for text in ("Hello", "Why?")]
    own = list(self_replies(builtin, prompts, 24, seed=1))
    assert list(self_replies(builtin, prompts, 24, seed=1)) == own  # seeded
    surprises = [surprise(builtin, reply) for reply in own]
    expected = [-s.log_probs.numpy() for s in score(builtin, own, full)]
    for found, wanted in zip(surprises, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    worse = [surprise + 0.1 for surprise in surprises]
    verdict = judge(worse, surprises, 0.9)
    assert verdict.rise is not None
    assert verdict.rise.value == pytest.approx(math.expm1(0.1))
    assert judge(surprises, surprises, 0.9).rise is None


def test_a_search_that_leaves_time_is_followed_by_a_more_thorough_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # At this pace, the ten minutes are enough for the least search only.
    monkeypatch.setattr("d3cli.calibrate.calibrator.measure_pace", lambda *_: 47.0)
    settings = CalibrationSettings(0.01, reply_tokens=40)
    calibrator = calibrator_of(planted(), list(documents()), settings)
    first = calibrator.prepare()
    assert not first.greedy and first.left_out
    doings = [progress.doing for progress in calibrator]
    assert "time is left for a more thorough search" in doings
    assert calibrator.plan.greedy and calibrator.plan.is_more_thorough(first)
    assert not any("influence instead" in cut for cut in calibrator.outcome.cut)
    assert calibrator.outcome.chosen is not None
