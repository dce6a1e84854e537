"""What a model can do instead, for a search that found nothing within its target.

Knows the search half; the unseen half has done its work.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from d3cli.calibrate.costs import Yardstick
from d3cli.calibrate.influence import measure_influence, order_by_influence
from d3cli.calibrate.mixed_order import in_legal_order
from d3cli.calibrate.race import Tried
from d3cli.calibrate.result import CalibrationProgress, Nearest, Outcome
from d3cli.calibrate.search import Search
from d3cli.calibrate.space import MIN_SAVED, Candidate
from d3cli.calibrate.unit_order import SearchKind, UnitOrder, fixed_order, kind_in_words
from d3cli.scoring.intervals import measure_drop

# Targets that are suggested, as fractions. The suggested one exceeds the upper bound of the drop by
# this factor, since the drop is a little higher on unseen text.
TARGETS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
MARGIN = 1.2


def find_nearest(
    search: Search, kinds: Sequence[SearchKind]
) -> Generator[CalibrationProgress, None, None]:
    """Finds the smallest drop at which a schedule saves enough, and fills the outcome's `nearest`.

    A search leaves out schedules that cost far more than its target. So the shortest prefix of each
    order that saves enough is scored as well, at constant depth. Kinds of units that the search
    left out are looked at if half of the time is left.
    """
    outcome, documents = search.outcome, len(search.plan.search)
    for kind in kinds:
        if kind not in search.plan.kinds and search.clock.elapsed > search.plan.seconds / 2:
            continue
        for order in _orders(search, kind):
            doing = kind_in_words(kind, by_prompt=order.by_prompt)
            yield CalibrationProgress(f"{doing}: what anything saved costs", search.clock.share)
            candidate = _shortest_that_saves(order, search.yardstick)
            if candidate is not None and candidate.key not in outcome.tried:
                losses = search.evaluator.losses(candidate.schedule, documents)
                drop = measure_drop(losses, search.settings.confidence)
                outcome.tried[candidate.key] = Tried(candidate, documents, drop)
    outcome.nearest = choose_nearest(outcome, search.settings.target_drop)


def _orders(search: Search, kind: SearchKind) -> Iterator[UnitOrder]:
    """The orders of a kind that the settings allow, as far as they go."""
    if search.plan.fixed:
        yield _fixed_order(search, kind)
    if search.plan.by_prompt and kind != "mixed":
        yield search.prompt_order(kind)


def _fixed_order(search: Search, kind: SearchKind) -> UnitOrder:
    """The search's own order; the units that it left out follow by influence."""
    model, outcome, units = search.model, search.outcome, search.units_of(kind)
    if not outcome.influence.keys() >= set(units):
        few = search.plan.search[: search.plan.stages[0]]
        outcome.influence |= measure_influence(model, few, units)
    ranked = order_by_influence(model, {unit: outcome.influence[unit] for unit in units})
    found = outcome.orders.get(kind, ())
    return fixed_order(
        search.yardstick.costs,
        kind,
        in_legal_order([*found, *(unit for unit in ranked if unit not in found)]),
    )


def _shortest_that_saves(order: UnitOrder, yardstick: Yardstick) -> Candidate | None:
    """The constant depth that drops as few units of an order as save enough; None without one."""
    steps = yardstick.new_tokens - 1
    for count in range(1, order.places + 1):
        ratios = yardstick.ratios(steps * order.saved[count], steps * order.saved_seconds[count])
        candidate = Candidate(
            order.static(count), order.kind, *ratios, math.nan, yardstick.quantization
        )
        if candidate.saved >= MIN_SAVED:
            return candidate
    return None


def choose_nearest(outcome: Outcome, missed: float) -> Nearest | None:
    """The schedule with the lowest upper bound among those tried that save enough.

    A schedule that was tested on unseen text counts with its drop there.

    Args:
        missed: the target that was not met.
    """
    tested = {one.candidate.key: one.drop for one in outcome.tested}
    saving = [
        replace(one, drop=tested.get(one.candidate.key, one.drop))
        for one in outcome.tried.values()
        if one.candidate.saved >= MIN_SAVED
    ]
    if not saving:
        return None
    best = min(saving, key=lambda one: one.drop.high)
    least = max(missed, MARGIN * best.drop.high)
    target = next((target for target in TARGETS if target > least), None)
    return Nearest(best, best.candidate.key in tested, target)
