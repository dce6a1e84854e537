"""The search as a whole: what it finds where the answer is known, and what it may promise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from d3cli.base.errors import CalibrationError, GenerationError, UsageError, spelled
from d3cli.calibrate.budget import check_halves, make_budget
from d3cli.calibrate.calibrator import Calibrator
from d3cli.calibrate.clock import SearchClock
from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.judge import judge, surprise
from d3cli.calibrate.own_replies import self_replies
from d3cli.calibrate.result import CalibrationSettings, Outcome
from d3cli.calibrate.space import StaticLosses, candidates, score_prefixes, share_at_floor
from d3cli.calibrate.texts import builtin_samples, choose, encode_samples, hash_documents
from d3cli.decode.loop import decode_step, prefill
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.families import random_ids, tiny
from tests.planted import IDLE, QUIET, documents, planted, sampled_documents


def outcome_of(
    model: LoadedModel, texts: list[Document], settings: CalibrationSettings, **options: object
) -> Outcome:
    calibrator = Calibrator(model, texts, settings, **options)
    shares = [progress.share for progress in calibrator]
    assert all(0 <= share <= 1 for share in shares)
    return calibrator.outcome


@pytest.fixture(scope="module")
def planted_outcome() -> Outcome:
    return outcome_of(planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=40))


def test_the_search_finds_all_that_the_construction_allows(planted_outcome: Outcome) -> None:
    model, chosen = planted(), planted_outcome.chosen
    assert chosen is not None
    allowed = static_schedule(model.weight_bytes, [str(layer) for layer in IDLE])
    reached = chosen.candidate.schedule.byte_ratio(40, model.weight_bytes)
    # Sublayers leave the norms of an idle layer in, which are next to nothing.
    assert reached >= 0.999 * allowed.byte_ratio(40, model.weight_bytes)
    assert chosen.drop.high <= 0.01


def test_what_matters_is_kept(planted_outcome: Outcome) -> None:
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


def test_only_what_held_on_unseen_text_is_chosen(planted_outcome: Outcome) -> None:
    tested = planted_outcome.tested
    ratios = [candidate.byte_ratio for candidate, _, _ in tested]
    assert ratios == sorted(ratios)  # from the safest to the fastest
    held = [candidate for candidate, _, held in tested if held]
    assert planted_outcome.chosen is not None
    assert held[-1] == planted_outcome.chosen.candidate
    assert [ok for _, _, ok in tested] == sorted((ok for _, _, ok in tested), reverse=True)
    assert all((drop.high <= 0.01) == held for _, drop, held in tested)


def test_the_halves_share_no_document() -> None:
    calibrator = Calibrator(
        planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=40)
    )
    search, unseen = calibrator.plan.search, calibrator.plan.unseen
    assert len(search) + len(unseen) == len(documents())
    assert not {id(d) for d in search} & {id(d) for d in unseen}


def test_a_model_whose_every_layer_matters_gets_nothing() -> None:
    model = tiny("llama").gated
    texts = sampled_documents(model, [random_ids(5, seed=s) for s in range(40)], 40)
    outcome = outcome_of(model, texts, CalibrationSettings(0.001, reply_tokens=30))
    assert outcome.chosen is None
    assert outcome.why_not


def test_a_search_without_time_says_so() -> None:
    calibrator = Calibrator(
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
def test_a_search_short_of_time_tests_what_it_has_and_says_so(
    monkeypatch: pytest.MonkeyPatch, share: float, slower: int, cut: str
) -> None:
    # A clock that counts the positions scored: how busy the machine is must not matter.
    monkeypatch.setattr("d3cli.calibrate.calibrator.measure_pace", lambda model, texts: 1.0)
    monkeypatch.setattr(SearchClock, "elapsed", property(lambda clock: slower * clock.scored))
    settings = CalibrationSettings(0.01, reply_tokens=40, max_seconds=1e9)
    whole = Calibrator(planted(), list(documents()), settings).plan.positions
    short = replace(settings, max_seconds=share * whole)
    outcome = outcome_of(planted(), list(documents()), short)
    assert cut in " and ".join(outcome.cut)
    assert outcome.chosen is not None and outcome.chosen.drop.high <= 0.01


def test_a_short_search_that_found_nothing_is_not_out_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("d3cli.calibrate.calibrator.measure_pace", lambda model, texts: 1.0)
    monkeypatch.setattr(SearchClock, "elapsed", property(lambda clock: clock.scored))
    model = tiny("llama").gated
    texts = sampled_documents(model, [random_ids(5, seed=s) for s in range(40)], 40)
    settings = CalibrationSettings(0.0001, reply_tokens=30, max_seconds=1e9)
    whole = Calibrator(model, texts, settings).plan.positions
    outcome = outcome_of(model, texts, replace(settings, max_seconds=0.7 * whole))
    assert outcome.cut  # not all that could be searched was
    assert not outcome.tried
    assert outcome.chosen is None
    assert outcome.why_not


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


# What a schedule is predicted to lose.


def test_static_depths_are_predicted_exactly() -> None:
    model, texts = planted(), list(documents())
    evaluator = Evaluator(model, texts, (8, 20, len(texts)), SearchClock(1e9))
    order = ["7", "2", "3"]
    losses = list(score_prefixes(model, evaluator, order, 20, 1e9))
    pool = candidates(model, "layer", StaticLosses(tuple(order), losses), 40)
    static = [candidate for candidate in pool if candidate.is_static]
    assert len(static) == 3
    for candidate in static:
        measured = np.concatenate(evaluator.losses(candidate.schedule, 20)).mean()
        assert candidate.predicted == pytest.approx(measured, abs=1e-9)


def test_byte_ratios_are_those_of_the_schedule() -> None:
    model, texts = planted(), list(documents())
    evaluator = Evaluator(model, texts, (8, 20, len(texts)), SearchClock(1e9))
    order = ["7.mlp", "2.attn", "3.mlp"]
    losses = list(score_prefixes(model, evaluator, order, 20, 1e9))
    pool = candidates(model, "sublayer", StaticLosses(tuple(order), losses), 40)
    assert len(pool) > 50
    for candidate in pool:
        expected = candidate.schedule.byte_ratio(40, model.weight_bytes, net_of_repair=True)
        assert candidate.byte_ratio == pytest.approx(expected)


def test_no_depth_is_promised_that_was_not_measured() -> None:
    model, texts = planted(), list(documents())  # responses of 48 tokens
    evaluator = Evaluator(model, texts, (8, 20, len(texts)), SearchClock(1e9))
    losses = list(score_prefixes(model, evaluator, ["7", "3"], 20, 1e9))
    pool = candidates(model, "layer", StaticLosses(("7", "3"), losses), 1000)
    assert pool
    for candidate in pool:
        schedule = candidate.schedule
        least = schedule.depth(999)
        at_least = sum(schedule.depth(t) == least for t in range(48))
        assert at_least >= 0.1 * 48


def test_long_replies_are_counted_without_being_laid_out() -> None:
    model, texts = planted(), list(documents())
    evaluator = Evaluator(model, texts, (8, 20, len(texts)), SearchClock(1e9))
    losses = list(score_prefixes(model, evaluator, ["7", "3"], 20, 1e9))
    pool = candidates(model, "layer", StaticLosses(("7", "3"), losses), 100_000)
    assert pool
    for candidate in pool[:: len(pool) // 5]:
        expected = candidate.schedule.byte_ratio(100_000, model.weight_bytes, net_of_repair=True)
        assert candidate.byte_ratio == pytest.approx(expected)


def test_savings_below_the_repairs_price_are_no_candidates() -> None:
    outcome = outcome_of(planted(), list(documents()), CalibrationSettings(0.01, reply_tokens=2))
    assert outcome.chosen is None
    assert "save at most" in spelled(outcome.why_not)


def test_the_share_of_tokens_at_the_least_depth() -> None:
    schedule = DepthSchedule(9, 0.5, 4, 1, 1, ("2", "3"))
    first = next(t for t in range(99) if schedule.depth(t) == 7)
    expected = sum(max(0, n - first) for n in (3, 9, 30)) / 42
    assert share_at_floor(schedule, [3, 9, 30]) == pytest.approx(expected)
    assert 0 < expected < 1


def test_text_that_the_model_does_not_know_is_not_calibrated_on() -> None:
    model = planted()
    unlikely = [
        Document(d.prompt_ids, [2 + i % 59 for i in random_ids(40, seed=n)])
        for n, d in enumerate(documents())
    ]
    settings = CalibrationSettings(0.05, units="layer", order="influence", reply_tokens=40)
    outcome = outcome_of(model, unlikely, settings)
    assert outcome.chosen is None
    assert "the text does not suit the model" in spelled(outcome.why_not)


# Evaluation.


def test_documents_scored_without_room_to_keep_anything_score_the_same() -> None:
    model, texts = planted(), list(documents())
    schedule = static_schedule(model.weight_bytes, ["7", "3"])
    kept = Evaluator(model, texts, (8, len(texts)), SearchClock(1e9))
    kept.remember(DepthSchedule.full(9), [1, 2])
    bare = Evaluator(model, texts, (8, len(texts)), SearchClock(1e9), kept_bytes=0)
    for count in (8, len(texts)):
        for one, other in zip(
            kept.losses(schedule, count), bare.losses(schedule, count), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_losses_are_full_depths_log_probability_less_the_schedules() -> None:
    model, texts = planted(), list(documents())[:12]
    schedule = DepthSchedule(9, 0.95, 2, 1, 1, ("7", "2", "3"))
    found = Evaluator(model, texts, (12,), SearchClock(1e9)).losses(schedule, 12)
    full = score(model, texts, DepthSchedule.full(9))
    ours = score(model, texts, schedule)
    for loss, f, o in zip(found, full, ours, strict=True):
        np.testing.assert_allclose(loss, (f.log_probs - o.log_probs).numpy(), atol=1e-4)


def test_a_token_without_probability_is_a_great_loss_and_no_nan() -> None:
    model = tiny("llama").gated
    texts = [Document(random_ids(4, seed=s), random_ids(9, seed=50 + s)) for s in range(4)]
    evaluator = Evaluator(model, texts, (4,), SearchClock(1e9))
    evaluator.losses(DepthSchedule.full(8), 4)  # full depth's scores are known from here on
    own = model.gate.layers[-1].forward
    model.gate.layers[-1].forward = lambda hidden, *a, **k: own(hidden, *a, **k) * math.nan
    try:
        losses = evaluator.losses(static_schedule(model.weight_bytes, ["3"]), 4)
        with pytest.raises(GenerationError, match="not finite"):
            Evaluator(model, texts, (4,), SearchClock(1e9)).losses(DepthSchedule.full(8), 4)
    finally:
        model.gate.layers[-1].forward = own
    assert all((loss[1:] == 100).all() for loss in losses)


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
    check_drop_by_decoding(Calibrator(planted(), documents(32, 34), settings))


@pytest.fixture(scope="module")
def builtin() -> LoadedModel:
    return load_model(dtype="float32", device="cpu")


@pytest.mark.slow
def test_the_drop_found_for_the_built_in_model_is_that_of_decoding(builtin: LoadedModel) -> None:
    texts = choose(encode_samples(builtin, builtin_samples(builtin)), 32, 3)
    settings = CalibrationSettings(0.03, units="layer", order="influence", reply_tokens=128)
    check_drop_by_decoding(Calibrator(builtin, texts, settings))


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


# Plans.


def plan(seconds: float, **options: object):
    texts = [Document([1] * 60, [1] * 200)] * 60
    settings = {
        "units": {"layer": 14, "sublayer": 28},
        "order": "auto",
        "pace": 5000.0,
        "seconds": seconds,
    }
    return make_budget(texts, texts, **settings | options)


def test_with_time_enough_nothing_is_left_out() -> None:
    whole = plan(1e9)
    assert whole.greedy and not whole.left_out
    assert whole.stages == (12, 30, 60)


def test_short_of_time_the_plan_fits_it_and_says_what_is_left_out() -> None:
    whole = plan(1e9)
    less = plan(0.5 * whole.estimate)
    assert less.estimate <= 0.5 * whole.estimate
    assert less.left_out
    assert less.search_deadline < 0.5 * whole.estimate
    least = plan(0.3 * whole.estimate)
    assert not least.greedy and len(least.search) >= 15
    assert "influence" in least.left_out and "documents" in least.left_out
    assert plan(0.2 * whole.estimate, all_kinds=False).kinds == ("layer",)


def test_what_was_asked_for_is_not_left_out() -> None:
    seconds = 0.6 * plan(1e9).estimate
    assert plan(seconds, order="greedy").greedy
    assert len(plan(seconds, all_documents=True).search) == 60
    assert plan(0.4 * seconds).kinds == ("layer", "sublayer")
    assert not plan(1e9, order="influence").greedy


def test_too_little_text_in_a_half_is_refused() -> None:
    short = [Document([1] * 9, [1] * 20)] * 20  # 400 tokens
    with pytest.raises(UsageError, match="too little text"):
        check_halves(short, short)


def test_a_hopeless_search_is_not_begun() -> None:
    with pytest.raises(CalibrationError, match="only 60 s are left") as error:
        plan(60, pace=20.0)
    assert error.value.hint.startswith("raise max_seconds to ")
    minutes = int(error.value.hint.split()[3])
    assert plan(60.0 * minutes, pace=20.0).estimate <= 60 * minutes


# Documents.


def test_documents_are_drawn_by_seed_and_hashed_whatever_their_order() -> None:
    texts = list(documents())
    assert choose(texts, 32, 1) == choose(texts, 32, 1) != choose(texts, 32, 2)
    assert choose(texts, 10_000, 1) == texts
    assert hash_documents(texts) == hash_documents(texts[::-1])
    assert hash_documents(texts) != hash_documents(texts[1:])
    with pytest.raises(UsageError, match="too few"):
        choose(texts, 31, 0)
