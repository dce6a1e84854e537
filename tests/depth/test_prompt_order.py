"""A schedule whose order each prompt decides: pure arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.errors import ScheduleError
from d3cli.depth.prompt_order import PromptSchedule, units_to_measure
from d3cli.depth.schedule import DepthSchedule

LAYERS = PromptSchedule(8, 0.9, 2, 2, 2, ("2", "3", "4", "5"))
PARTS = ("3.attn", "3.mlp", "4.attn", "4.mlp")
SUBLAYERS = PromptSchedule(8, 0.9, 0, 3, 3, PARTS, (0.25, 0.75, 0.25, 0.75))


@pytest.mark.parametrize("schedule", [LAYERS, SUBLAYERS])
@given(st.data())
def test_the_least_influence_per_weight_is_dropped_first(
    schedule: PromptSchedule, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.floats(0, 2), min_size=4, max_size=4))
    influence = dict(zip(schedule.units, values, strict=True))
    ordered = schedule.ordered(influence | {"99": 0.0})
    weights = dict(zip(schedule.units, schedule.weights, strict=True))
    rates = [influence[unit] / weights[unit] for unit in ordered.skip_order]
    ranks = list(zip(rates, map(schedule.units.index, ordered.skip_order), strict=True))
    assert ranks == sorted(ranks)
    assert sorted(ordered.skip_order) == sorted(schedule.units)
    assert dict(zip(ordered.skip_order, ordered.weights, strict=True)) == weights
    assert ordered.floor == pytest.approx(schedule.floor)
    assert ordered.in_words() == schedule.in_words()


@given(st.permutations(LAYERS.units), st.integers(0, 60))
def test_the_depth_of_whole_layers_is_known_before_the_order(order: list[str], t: int) -> None:
    ordered = LAYERS.ordered({unit: rank for rank, unit in enumerate(order)})
    assert ordered.skip_order == tuple(order)
    assert ordered.depth(t) == LAYERS.depth(t)


def test_without_an_order_nothing_is_dropped_and_the_settings_stay() -> None:
    assert LAYERS.without_order() == DepthSchedule(8, 0.9, 2, 2, 2)
    assert SUBLAYERS.without_order().depth(1000) == 8


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": 0.0},
        {"start": -1},
        {"core_first": 3},
        {"units": ("2", "2")},
        {"weights": (1.0,)},
        {"num_layers": 5},
        {"min_depth": -1.0},
        {"min_depth": 9.0},
    ],
)
def test_what_no_order_can_satisfy_is_refused_at_once(fields: dict) -> None:
    good = {"num_layers": 8, "alpha": 0.9, "core_first": 2, "core_last": 2}
    with pytest.raises(ScheduleError):
        PromptSchedule(**good | {"units": LAYERS.units} | fields)


def test_only_a_schedule_without_an_order_needs_a_measurement() -> None:
    assert units_to_measure(LAYERS) == "layer"
    assert units_to_measure(SUBLAYERS) == "sublayer"
    assert units_to_measure(DepthSchedule.full(8)) is None
    assert units_to_measure(None) is None
