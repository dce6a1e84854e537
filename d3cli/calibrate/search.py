"""The search half of a calibration: skip orders for each kind of unit, and schedules over them.

Knows nothing of the unseen half.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.budget import Budget
from d3cli.calibrate.clock import OutOfTime, SearchClock
from d3cli.calibrate.costs import Yardstick
from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.influence import measure_influence, order_by_influence
from d3cli.calibrate.mixed_order import (
    SCORED_PREFIXES,
    OrderOfSingles,
    in_legal_order,
    units_of_mix,
    worth_scoring,
)
from d3cli.calibrate.order import GreedyOrder, units_of
from d3cli.calibrate.race import race
from d3cli.calibrate.result import CalibrationProgress, Outcome
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import Candidate, StaticLosses, candidates, score_prefixes
from d3cli.calibrate.unit_order import (
    SearchKind,
    UnitOrder,
    fixed_order,
    kind_in_words,
    prompt_orders,
)
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import UnitKind
from d3cli.model.model import LoadedModel
from d3cli.scoring.intervals import Losses

# An order ends before the unit whose drop, at constant depth, costs more than this many times the
# target: at least a tenth of all tokens would run without it.
MAX_LOSS = 4


class Search:
    """Iterate it to search; it fills the outcome's orders, influence, tried and cut.

    Args:
        clock: its deadline is set for each part of the search.
        yardstick: what a schedule saves.
        reference: as for `Evaluator`.

    Attributes:
        evaluator: scores schedules on the search half.
        pool: every candidate of every kind, tried or not.
        ended_early: whether the time ended before the search.
        took: seconds that it took, once it has ended.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: CalibrationSettings,
        plan: Budget,
        clock: SearchClock,
        outcome: Outcome,
        yardstick: Yardstick,
        reference: Sequence[NDArray[np.float64]] | None = None,
    ) -> None:
        self.model, self.settings, self.plan = model, settings, plan
        self.clock, self.outcome, self.yardstick = clock, outcome, yardstick
        self.evaluator = Evaluator(model, plan.search, plan.stages, clock, reference=reference)
        self.pool: list[Candidate] = []
        self.ended_early = False
        self.took = 0.0

    def __iter__(self) -> Iterator[CalibrationProgress]:
        parts = [self._search_fixed] * self.plan.fixed + [self._search_by_prompt] * (
            self.plan.by_prompt
        )
        searches = [
            (kind, part)
            for kind in self.plan.kinds
            for part in parts
            if kind != "mixed" or part == self._search_fixed
        ]
        for number, (kind, part) in enumerate(searches):
            left = self.plan.search_deadline - self.clock.elapsed
            yield from part(kind, self.clock.elapsed + left / (len(searches) - number))

    def _search_fixed(self, kind: SearchKind, ends: float) -> Iterator[CalibrationProgress]:
        """Schedules over one order for all prompts."""
        try:
            units = yield from self._rank(kind, ends)
            self.clock.deadline = ends
            order = fixed_order(self.yardstick.costs, kind, units)
            static = yield from self._score_prefixes(order)
            known = self.outcome.orders.get(kind, ())
            self.outcome.orders[kind] = max(known, static.order.units, key=len)
            yield from self._race(static)
        except OutOfTime:
            self._cut(kind_in_words(kind, by_prompt=False))

    def _search_by_prompt(self, kind: SearchKind, ends: float) -> Iterator[CalibrationProgress]:
        """Schedules over each prompt's own order."""
        assert kind != "mixed"
        doing = kind_in_words(kind, by_prompt=True)
        yield self._progress(f"{doing}: influence")
        self.clock.deadline = ends
        try:
            static = yield from self._score_prefixes(self.prompt_order(kind))
            yield from self._race(static)
        except OutOfTime:
            self._cut(doing)

    def _cut(self, what: str) -> None:
        self.ended_early = True
        self.outcome.cut.append(f"the search through {what} ended early")

    def prompt_order(self, kind: UnitKind) -> UnitOrder:
        """Each prompt's own order of a kind of units.

        Raises:
            OutOfTime: the clock has run out.
        """
        units, weight_bytes = units_of(self.model, kind), self.model.weight_bytes
        weights = weight_bytes.weights(units)
        schedule = PromptSchedule(self.model.num_layers, 0.5, 0, 1, 1, tuple(units), weights)
        orders = [one.skip_order for one in self.evaluator.ordered(schedule)]
        return prompt_orders(self.yardstick.costs, kind, units, orders)

    def _progress(self, doing: str) -> CalibrationProgress:
        return CalibrationProgress(doing, self.clock.share)

    def _rank(
        self, kind: SearchKind, ends: float
    ) -> Generator[CalibrationProgress, None, list[str]]:
        """The units in the order in which to drop them."""
        units, words = self.units_of(kind), kind_in_words(kind)
        known = self.outcome.orders.get(kind)
        if known is None or not self.outcome.influence.keys() >= set(units):
            yield self._progress(f"{words}: influence")
            few = self.plan.search[: self.plan.stages[0]]
            self.outcome.influence |= measure_influence(self.model, few, units)
        ranking = order_by_influence(
            self.model, {unit: self.outcome.influence[unit] for unit in units}
        )
        if known is not None:  # found in another form of the weights
            return in_legal_order([*known, *(unit for unit in ranking if unit not in known)])
        if not self.plan.greedy:
            return in_legal_order(ranking)
        self.clock.deadline = (self.clock.elapsed + ends) / 2  # the race needs the rest
        if kind in ("mixed", "plane"):
            return (yield from self._rank_by_singles(words, ranking))
        max_loss = MAX_LOSS * self.settings.target_drop
        greedy = GreedyOrder(self.model, self.evaluator, self.plan.stages[0], ranking, max_loss)
        if (yield from self._follow(greedy, words)):
            return greedy.order
        self.outcome.cut.append(f"the order of {words} is greedy in part")
        return [*greedy.order, *(unit for unit in ranking if unit not in greedy.order)]

    def _rank_by_singles(
        self, words: str, ranking: list[str]
    ) -> Generator[CalibrationProgress, None, list[str]]:
        """Low planes and a few coarse units, by what each loses alone."""
        wanted = worth_scoring(ranking)
        singles = OrderOfSingles(
            self.model.weight_bytes, self.evaluator, self.plan.stages[0], wanted
        )
        if (yield from self._follow(singles, words)):
            return singles.order
        self.outcome.cut.append(f"the order of {words} is by influence in part")
        found = singles.order
        return in_legal_order([*found, *(unit for unit in wanted if unit not in found)])

    def _follow(
        self, ranking: Iterable[DepthSchedule], words: str
    ) -> Generator[CalibrationProgress, None, bool]:
        """Whether time allows a ranking to end."""
        try:
            for schedule in ranking:
                yield self._progress(f"{words}: without {' '.join(schedule.skip_order)}")
        except OutOfTime:
            return False
        return True

    def units_of(self, kind: SearchKind) -> list[str]:
        """All units that an order of a kind may name."""
        return units_of_mix(self.model) if kind == "mixed" else units_of(self.model, kind)

    def _score_prefixes(
        self, order: UnitOrder
    ) -> Generator[CalibrationProgress, None, StaticLosses]:
        """Each prefix of the order as a constant depth, until one costs too much."""
        losses: list[Losses] = []
        documents, max_loss = self.plan.stages[1], MAX_LOSS * self.settings.target_drop
        doing = kind_in_words(order.kind, by_prompt=order.by_prompt)
        stride = 1
        if order.kind in ("mixed", "plane"):
            stride = max(1, order.places // SCORED_PREFIXES)
        for prefix in score_prefixes(self.evaluator, order, documents, max_loss, stride):
            losses.append(prefix)
            yield self._progress(f"{doing}: constant depth, {len(losses) - 1} dropped")
        return StaticLosses(order.first(len(losses) - 1), losses)

    def _race(self, static: StaticLosses) -> Iterator[CalibrationProgress]:
        """Scores the most promising schedules over the order."""
        settings, order = self.settings, static.order
        doing = kind_in_words(order.kind, by_prompt=order.by_prompt)
        pool = candidates(static, self.yardstick)
        self.pool += pool
        if not pool:
            return
        self.evaluator.share_first_layers(c.schedule for c in pool)
        _, full_speed = self.yardstick.full_depth
        for tried in race(
            self.evaluator, pool, static, settings.target_drop, settings.confidence, full_speed
        ):
            schedule = tried.candidate.schedule
            self.outcome.tried[tried.candidate.key] = tried
            yield self._progress(
                f"{doing}: alpha {schedule.alpha:.6g} from {schedule.start} on "
                f"{tried.documents} documents, {tried.drop.value:+.2%}"
            )
