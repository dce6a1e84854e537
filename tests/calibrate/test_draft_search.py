"""The search for what drafts best, on a model whose layers' worth is known."""

from collections.abc import Sequence

import numpy as np
import pytest

from d3cli.calibrate.costs import StepCosts, costs_by_bytes
from d3cli.calibrate.draft_candidates import draft_candidates, units_to_rank
from d3cli.calibrate.draft_clock import DraftClock
from d3cli.calibrate.draft_search import DraftOutcome, DraftSearch
from d3cli.calibrate.record import make_draft_record
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.decode.draft.length import best_length
from d3cli.depth.draft_record import DraftCalibration
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import parse_unit
from d3cli.model.decoder_pass import MOST_TOKENS
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import share_with_bound
from tests.planted import IDLE, documents, planted


class ByBytes(DraftClock):
    """A machine on which time follows the bytes; each further row of a pass costs 5%."""

    row_cost = 0.05

    def steps(self) -> StepCosts:
        return costs_by_bytes(self._model.weight_bytes, 255)

    def verifications(self) -> list[float]:
        return [1 + self.row_cost * drafted for drafted in range(1, MOST_TOKENS)]

    def drafted(self, dropped: Sequence[str]) -> float:
        weights = self._model.weight_bytes
        return weights.read(dropped) / weights.total


class SlowPasses(ByBytes):
    row_cost = 1.0


def search(clock: type[DraftClock] = ByBytes, texts: Sequence[Document] = ()) -> DraftOutcome:
    found = DraftSearch(planted(), texts or documents(), 0, 0.9, clock)
    shares = [progress.share for progress in found]
    assert shares == sorted(shares)
    assert shares[-1] < 1
    return found.outcome


@pytest.fixture(scope="module")
def outcome() -> DraftOutcome:
    return search()


def test_the_best_draft_leaves_out_the_idle_layers(outcome: DraftOutcome) -> None:
    dropped = {parse_unit(unit).layer for unit in outcome.best.candidate.schedule.skip_order}
    assert set(IDLE) <= dropped
    assert outcome.best.gain >= outcome.gain_low > 1
    assert outcome.best.length >= 1


def test_what_is_reported_follows_from_agreement_and_costs(outcome: DraftOutcome) -> None:
    for one in outcome.tried:
        expected = best_length(
            one.agreement,
            one.candidate.cost,
            [1.0, *outcome.verification],
            MOST_TOKENS - 1,
        )
        assert (one.length, one.gain) == expected
    assert outcome.best.gain > 1
    assert outcome.agreement_low <= outcome.best.agreement
    assert outcome.documents == len(documents()) // 2
    assert outcome.tokens == sum(len(each.response_ids) - 1 for each in documents()) // 2


def test_the_best_is_chosen_on_the_search_half(outcome: DraftOutcome) -> None:
    most = max(one.gain for one in outcome.tried)
    chosen = outcome.best.candidate.schedule
    assert any(one.candidate.schedule == chosen and one.gain == most for one in outcome.tried)


def test_where_verifying_costs_too_much_no_draft_pays() -> None:
    found = search(SlowPasses)
    assert (found.best.length, found.best.gain, found.gain_low) == (0, 1.0, 1.0)
    settings = CalibrationSettings(target_drop=0.01)
    record = make_draft_record(found, settings, "made up", documents())
    assert not record.pays
    assert DraftCalibration.from_json(record.to_json()) == record


def test_every_candidate_drops_the_same_units_at_each_token() -> None:
    model, influence = planted(), dict.fromkeys(units_to_rank(planted()), 0.5)
    costs = costs_by_bytes(model.weight_bytes, 255)
    candidates = draft_candidates(model, influence, costs)
    assert len({frozenset(one.schedule.skip_order) for one in candidates}) == len(candidates)
    for one in candidates:
        assert isinstance(one.schedule, DepthSchedule)
        assert one.schedule.dropped(1) == one.schedule.skip_order != ()
        assert 0 < one.cost < 1


def test_the_clock_measures_what_a_draft_and_its_verification_take() -> None:
    clock = DraftClock(planted(), documents()[0])
    costs = clock.verifications()
    assert len(costs) == MOST_TOKENS - 1
    assert all(cost >= 1 for cost in costs)
    assert clock.drafted(("2", "5", "6")) > 0
    assert clock.steps().seconds > 0


def test_a_share_and_its_bound() -> None:
    draw = np.random.default_rng(0)
    hits = [draw.random(50) < 0.8 for _ in range(30)]
    share, low = share_with_bound(hits, 0.9)
    assert share == pytest.approx(np.concatenate(hits).mean())
    assert share - 0.05 < low < share
    assert share_with_bound([np.ones(9, dtype=bool)] * 5, 0.9) == (1, 1)
    assert share_with_bound([np.zeros(9, dtype=bool)] * 5, 0.9) == (0, 0)
