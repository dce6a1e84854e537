"""The length of a draft follows acceptance and costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.decode.draft.length import (
    HIGH_ROW_COST,
    LEAST_GAIN,
    PRIOR,
    ROW_COST,
    SINGLE_COUNTS,
    TIMINGS,
    Acceptance,
    Costs,
    best_length,
)


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens that a draft gives, over all numbers of accepted ones."""
    cut_short = sum((n + 1) * acceptance**n * (1 - acceptance) for n in range(length))
    return cut_short + (length + 1) * acceptance**length


class TestBestLength:
    @given(
        acceptance=st.floats(0, 1),
        draft_cost=st.floats(0, 1.5),
        rows=st.lists(st.floats(0, 0.5), min_size=15, max_size=15),
        most=st.integers(0, 15),
    )
    def test_it_is_the_best_of_all_lengths(
        self, acceptance: float, draft_cost: float, rows: list[float], most: int
    ) -> None:
        verify_cost = [1 + sum(rows[:drafted]) for drafted in range(16)]
        gains = {
            length: expected_tokens(acceptance, length)
            / (length * draft_cost + verify_cost[length])
            for length in range(1, most + 1)
        }
        best = max(gains.values(), default=0.0)
        length, gain = best_length(acceptance, draft_cost, verify_cost, most)
        if length == 0:
            assert gain == 1
            assert best <= LEAST_GAIN + 1e-9
        else:
            assert gain == pytest.approx(gains[length])
            assert gain == pytest.approx(best)
            assert gain > LEAST_GAIN

    def test_what_is_always_accepted_is_drafted_at_full_length(self) -> None:
        assert best_length(1.0, 0.0, [1.0] * 16, 15) == (15, 16.0)

    def test_what_is_never_accepted_is_not_drafted(self) -> None:
        assert best_length(0.0, 0.0, [1.0] * 16, 15) == (0, 1.0)

    def test_what_costs_as_much_as_it_saves_is_not_drafted(self) -> None:
        assert best_length(1.0, 1.0, [1.0] * 16, 15) == (0, 1.0)


class TestAcceptance:
    def test_the_share_goes_from_the_prior_to_what_is_seen(self) -> None:
        seen = Acceptance()
        assert seen.share("a") == PRIOR
        for _ in range(40):
            seen.learn("a", 5, 4)
        assert seen.share("a") == pytest.approx(0.8, abs=0.02)
        assert seen.share("b") == PRIOR

    def test_what_was_never_tried_is_not_proven(self) -> None:
        seen = Acceptance()
        assert seen.proven("a") == 0
        seen.learn("a", 1, 1)
        assert 0 < seen.proven("a") < seen.share("a")

    def test_what_was_seen_lately_weighs_more(self) -> None:
        seen = Acceptance()
        for accepted in [1] * 100 + [0] * 10:
            seen.learn("a", 1, accepted)
        assert seen.share("a") < 0.45

    def test_it_forgets_while_nothing_is_tried(self) -> None:
        seen = Acceptance()
        for _ in range(100):
            seen.learn("a", 1, 0)
        failed = seen.share("a")
        seen.fade(200)
        faded = seen.share("a")
        for _ in range(1000):
            seen.fade(5)
        assert failed < faded < seen.share("a")
        assert seen.share("a") == pytest.approx(PRIOR)


class TestCosts:
    def test_before_anything_is_measured_the_priors_hold(self) -> None:
        costs = Costs()
        assert costs.step is None
        assert costs.draft("a", 0.25) == 0.25
        assert costs.verify()[4] == pytest.approx(1 + 4 * ROW_COST)
        costs.learn_draft("a", 0.25, 4, 9.0)  # of unknown worth, since no step was measured
        assert costs.draft("a", 0.25) == 0.25

    def test_a_pass_costs_what_others_of_its_size_did(self) -> None:
        costs = Costs()
        for seconds in (2.0, 2.0, 90.0):
            costs.learn_pass(1, seconds)
        for seconds in (3.0, 3.0, 1.0):
            costs.learn_pass(5, seconds)
        assert costs.step == 2.0
        assert costs.verify()[4] == 1.5

    def test_sizes_between_those_measured_are_interpolated(self) -> None:
        costs = Costs()
        for rows, seconds in ((1, 2.0), (3, 3.0), (7, 7.0)):
            costs.learn_pass(rows, seconds)
        assert costs.verify()[1] == pytest.approx(1.25)
        assert costs.verify()[3] == pytest.approx(2.0)
        assert costs.verify()[5] == pytest.approx(3.0)
        assert costs.verify()[9] == pytest.approx(3.5 + 3 * ROW_COST)  # beyond: 10 rows after 7
        assert costs.verify_at_most()[9] == pytest.approx(3.5 + 3 * 2.5 / 6)  # as the 6 did

    def test_rows_that_were_not_measured_cost_more_to_the_careful(self) -> None:
        costs = Costs()
        assert costs.verify_at_most()[2] == pytest.approx(1 + 2 * HIGH_ROW_COST)
        costs.learn_pass(1, 2.0)
        assert costs.verify_at_most()[2] == pytest.approx(1 + 2 * HIGH_ROW_COST)
        costs.learn_pass(3, 1.9)
        assert costs.verify_at_most()[6] == pytest.approx(0.95 + 4 * ROW_COST)

    def test_one_slow_pass_does_not_count_for_good(self) -> None:
        costs = Costs()
        costs.learn_pass(1, 1.0)
        costs.learn_pass(4, 9.0)
        assert costs.verify()[3] == 4  # as four plain steps
        for _ in range(SINGLE_COUNTS):
            costs.learn_pass(1, 1.0)
        assert costs.verify()[3] == pytest.approx(1 + 3 * ROW_COST)
        assert costs.verify_at_most()[3] == 4
        costs.learn_pass(4, 2.0)  # a second one counts, and tells that the first was slow
        for _ in range(SINGLE_COUNTS):
            costs.learn_pass(1, 1.0)
        assert costs.verify()[3] == 2

    def test_old_timings_are_forgotten(self) -> None:
        costs = Costs()
        for seconds in [9.0] * 20 + [1.0] * TIMINGS:
            costs.learn_pass(1, seconds)
        assert costs.step == 1.0

    def test_one_draft_that_also_reads_the_prompt_says_little(self) -> None:
        costs = Costs()
        costs.learn_pass(1, 2.0)
        costs.learn_draft("a", 0.25, 2, 600.0)
        assert costs.draft("a", 0.25) == 0.25
        for _ in range(TIMINGS):
            costs.learn_draft("a", 0.25, 4, 4.0)
        assert costs.draft("a", 0.25) == 0.5
