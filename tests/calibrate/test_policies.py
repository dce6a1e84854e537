"""Rival policies beside D³: at equal bytes, against values computed in another way."""

import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from d3cli.calibrate.calibrator import Calibrator
from d3cli.calibrate.costs import StepCosts, costs_by_bytes
from d3cli.calibrate.forms import ModelForms
from d3cli.calibrate.policies import (
    PART,
    RATIOS,
    ComparedPolicies,
    PolicyAtRatio,
    PolicyComparison,
    order_of,
)
from d3cli.calibrate.result import Outcome
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.depth.policies import Policy, byte_ratio_of
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import perplexity, score
from tests.planted import IDLE, documents, planted

SETTINGS = CalibrationSettings(
    0.01, units="layer", order="influence", reply_tokens=8, compare_policies=True
)


@cache
def calibrated() -> Calibrator:
    def costs(model: LoadedModel, _: Document) -> StepCosts:
        return costs_by_bytes(model.weight_bytes, SETTINGS.reply_tokens - 1)

    calibrator = Calibrator(planted(), documents(40, 28), SETTINGS, costs=costs)
    for _ in calibrator:
        pass
    return calibrator


def compare(outcome: Outcome, texts: list[Document], seconds: float = 600.0) -> ComparedPolicies:
    deadline = time.monotonic() + seconds
    comparison = PolicyComparison(ModelForms(planted()), SETTINGS, outcome, texts, deadline)
    assert all(0 <= progress.share <= 1 for progress in comparison)
    return comparison.found


@cache
def whole() -> ComparedPolicies:
    return compare(calibrated().outcome, list(calibrated().plan.unseen))


def row_of(found: ComparedPolicies, policy: Policy, asked: float) -> PolicyAtRatio:
    [row] = [one for one in found.rows if (one.policy, one.asked) == (policy, asked)]
    return row


def test_the_chosen_schedule_is_compared_as_it_was_confirmed() -> None:
    chosen, found = calibrated().outcome.chosen, whole()
    assert chosen is not None
    first = found.rows[0]
    assert (first.policy, first.schedule) == (Policy.D3, chosen.candidate.schedule)
    assert first.byte_ratio == found.chosen_ratio
    assert first.drop.value == pytest.approx(chosen.drop.value)
    assert (first.kl, first.same_top) == pytest.approx((chosen.kl, chosen.same_top), abs=1e-6)
    assert (found.documents, found.tokens) == (chosen.documents, chosen.tokens)


def test_every_row_has_the_figures_of_plain_scores_and_of_its_own_bytes() -> None:
    model, texts = planted(), list(calibrated().plan.unseen)
    full = perplexity(score(model, texts, DepthSchedule.full(model.num_layers)))
    lengths = [len(document.response_ids) for document in texts]
    assert len(whole().rows) > 10
    for row in whole().rows:
        ours = perplexity(score(model, texts, row.schedule))
        assert row.drop.value == pytest.approx(ours / full - 1, abs=1e-5)
        assert row.drop.low <= row.drop.value <= row.drop.high
        d3 = next(
            (one for one in whole().rows if (one.policy, one.asked) == ("d3", row.asked)), None
        )
        if row.policy is Policy.D3 or d3 is None:
            assert row.against_d3 is None
        else:
            against = ours / perplexity(score(model, texts, d3.schedule)) - 1
            assert row.against_d3 is not None
            assert row.against_d3.value == pytest.approx(against, abs=1e-5)
        assert row.byte_ratio == pytest.approx(
            byte_ratio_of(row.schedule, model.weight_bytes, lengths)
        )
        assert row.byte_ratio == pytest.approx(row.asked, rel=0.05)
        depths = [row.schedule.depth(t) for length in lengths for t in range(1, length)]
        assert row.layer_ratio == pytest.approx(model.num_layers / np.mean(depths))


def test_policies_that_keep_idle_layers_lose_more() -> None:
    # Three of the nine layers do nothing, and D³'s order begins with them.
    asked = whole().rows[0].asked
    assert set(whole().rows[0].schedule.units) <= {str(layer) for layer in IDLE}
    early = row_of(whole(), Policy.EARLY_EXIT, asked)
    assert early.drop.low > row_of(whole(), Policy.D3, asked).drop.high
    assert early.against_d3 is not None
    assert early.against_d3.low > 0


def test_every_policy_at_the_chosen_ratio_writes_replies_that_full_depth_judges() -> None:
    asked, found = whole().rows[0].asked, whole()
    assert found.full_depth is not None
    assert found.full_depth.rise is None
    judged = [row for row in found.rows if row.judged is not None]
    assert [row.policy for row in judged] == [
        row.policy for row in found.rows if row.asked == asked
    ]
    for row in judged:
        assert row.judged is not None
        assert row.judged.rise is not None
        assert row.judged.prompts == found.full_depth.prompts
        assert row.judged.perplexity / found.full_depth.perplexity - 1 == pytest.approx(
            row.judged.rise.value
        )
        assert row.judged.tokens == row.judged.prompts * SETTINGS.reply_tokens
        assert row.reply_byte_ratio == pytest.approx(
            byte_ratio_of(row.schedule, planted().weight_bytes, [SETTINGS.reply_tokens])
        )


def test_policies_are_compared_where_nothing_was_chosen() -> None:
    outcome = replace(calibrated().outcome, chosen=None)
    # One prompt for all: it is answered once.
    texts = [Document([1, 2, 3], one.response_ids) for one in calibrated().plan.unseen[:PART]]
    found = compare(outcome, texts)
    assert found.chosen_ratio is None
    assert list(dict.fromkeys(row.asked for row in found.rows)) == [
        ratio for ratio in RATIOS if any(row.asked == ratio for row in found.rows)
    ]
    assert {row.policy for row in found.rows} == set(Policy)
    left_out = len(RATIOS) * len(Policy) - len(found.rows)
    assert len([one for one in found.left_out if "none near it" in one]) == left_out


def test_after_the_deadline_a_few_documents_and_replies_are_still_compared() -> None:
    texts = list(documents(40, 28))
    found = compare(calibrated().outcome, texts, seconds=-1.0)
    assert found.documents == PART
    assert f"{len(texts) - PART} of {len(texts)} documents" in found.left_out
    assert found.full_depth is not None
    assert found.full_depth.prompts == 4
    assert any(one.startswith("replies to ") for one in found.left_out)


def test_the_order_goes_on_by_influence_where_the_search_ended_it() -> None:
    outcome = replace(
        Outcome(orders={"layer": ("5", "2")}),
        influence={"1": 0.3, "2": 0.0, "3": 0.1, "4": 0.9, "5": 0.0, "6": 0.2, "7": 0.4},
    )
    order = order_of(planted(), outcome, None)
    assert order.units == ("5", "2", "3", "6", "1", "7", "4")


def test_prompts_go_on_deciding_the_order_if_they_decided_the_chosen_one() -> None:
    outcome = calibrated().outcome
    assert outcome.chosen is not None
    by_prompt = PromptSchedule(9, 0.5, 0, 1, 1, ("2", "4", "5", "6"), max_dropped=2)
    candidate = replace(outcome.chosen.candidate, schedule=by_prompt)
    order = order_of(planted(), outcome, candidate)
    assert isinstance(order, PromptSchedule)
    assert (order.units, order.max_dropped) == (by_prompt.units, 4)
