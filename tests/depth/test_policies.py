"""Rival policies as schedules: their layers by the reference's formulas, and equal bytes."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.errors import ScheduleError
from d3cli.depth.linear_schedule import LinearSchedule
from d3cli.depth.policies import (
    Policy,
    at_byte_ratio,
    byte_ratio_of,
    early_exit,
    first_units,
    schedules_of,
    skipdecode,
    unified,
)
from d3cli.depth.prompt_order import PromptSchedule, Schedule, schedule_from_json
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import LayerBytes, WeightBytes
from tests.depth.layers import equal_layers, read_plane_by_plane, shallow_first
from tests.reference import skipped_by_early_exit, skipped_by_skipdecode, skipped_by_unified

layers = st.integers(3, 40)
RIVALS = [policy for policy in Policy if policy is not Policy.D3]


@given(layers, st.data())
def test_unified_keeps_evenly_spread_layers_and_both_ends(
    num_layers: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(2, num_layers - 1))
    schedule = unified(equal_layers(num_layers), kept)
    assert set(schedule.dropped(1)) == set(schedule.dropped(10**6))
    assert set(schedule.dropped(1)) == skipped_by_unified(num_layers, kept)
    assert schedule.depth(1) == kept
    assert not {"0", f"{num_layers - 1}"} & set(schedule.dropped(1))
    runs = [n for n in range(num_layers) if f"{n}" not in schedule.dropped(1)]
    gaps = {b - a for a, b in pairwise(runs)}
    assert max(gaps) - min(gaps) <= 1


@given(layers, st.data())
def test_early_exit_runs_the_first_layers(num_layers: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, num_layers - 1))
    schedule = early_exit(equal_layers(num_layers), kept)
    assert set(schedule.dropped(1)) == skipped_by_early_exit(num_layers, kept)
    assert schedule.depth(1) == schedule.depth(999) == kept


@given(layers, st.integers(3, 300), st.data())
def test_skipdecode_follows_the_line_between_its_bounds(
    num_layers: int, new_tokens: int, data: st.DataObject
) -> None:
    lowest = data.draw(st.integers(2, num_layers - 1))
    highest = data.draw(st.integers(lowest, num_layers))
    schedule = skipdecode(num_layers, highest, lowest, new_tokens)
    assert schedule.dropped(0) == ()
    assert schedule.depth(1) == highest
    assert schedule.depth(new_tokens - 1) == schedule.depth(new_tokens + 50) == lowest
    for t in range(1, new_tokens):
        expected = skipped_by_skipdecode(num_layers, highest, lowest, new_tokens, t)
        assert set(schedule.dropped(t)) == expected


def test_a_known_example_of_each_policy() -> None:
    weights = equal_layers(9)
    assert unified(weights, 3).skip_order == ("1", "2", "3", "5", "6", "7")
    assert early_exit(weights, 6).skip_order == ("8", "7", "6")
    falling = skipdecode(9, 9, 5, 6)
    assert [falling.depth(t) for t in range(8)] == [9, 9, 8, 7, 6, 5, 5, 5]
    assert falling.dropped(3) == ("1", "2")
    assert falling.in_words() == "linear from 9 layers at token 1, down to 5 of 9 layers at token 5"


@given(st.integers(1, 14), st.integers(0, 40), st.integers(1, 60))
def test_the_first_units_of_an_order_are_gone_after_the_pace(
    count: int, start: int, pace: int
) -> None:
    order = shallow_first(30, 0.97)
    schedule = first_units(order, count, start, pace)
    assert schedule.units == order.units[:count]
    assert schedule.num_dropped(start) == 0
    # The first unit goes at the first token after the start, whatever alpha is.
    assert count == 1 or schedule.num_dropped(start + pace - 1) < count
    assert schedule.num_dropped(start + pace) == count


@given(st.permutations(["2", "3", "4", "5"]), st.integers(1, 4))
def test_the_constant_depth_of_a_prompts_order_begins_at_token_1(
    ranks: list[str], count: int
) -> None:
    order = PromptSchedule(8, 0.9, 2, 2, 2, ("2", "3", "4", "5"))
    constant = first_units(order, count)
    assert isinstance(constant, PromptSchedule)
    ordered = constant.ordered({unit: number for number, unit in enumerate(ranks)})
    assert ordered.dropped(1) == tuple(ranks[:count])


@given(
    st.permutations([f"{n}.{part}" for n in (2, 3, 4, 5) for part in ("attn", "mlp")]), st.data()
)
def test_a_constant_depth_reads_as_much_in_every_order_of_unequal_units(
    found: list[str], data: st.DataObject
) -> None:
    parts = tuple(f"{layer}.{part}" for layer in (2, 3, 4, 5) for part in ("attn", "mlp"))
    order = PromptSchedule(8, 0.9, 2, 2, 2, parts, (0.25, 0.75) * 4)
    count, pace = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 20))
    planned = sum(order.weights[:count])
    schedule = first_units(order, count, 0, pace)
    assert isinstance(schedule, PromptSchedule)
    weight = dict(zip(parts, order.weights, strict=True))
    ordered = schedule.ordered({unit: n * weight[unit] for n, unit in enumerate(found)})
    lost = 8 - ordered.depth(pace)
    assert planned - 0.75 < lost <= planned + 1e-9
    assert ordered.num_dropped(pace) == len(ordered.units)


def slow_ratio(schedule: DepthSchedule, weights: WeightBytes, lengths: list[int]) -> float:
    steps = Counter(schedule.dropped(t) for length in lengths for t in range(1, length))
    read = sum(count * read_plane_by_plane(weights, dropped) for dropped, count in steps.items())
    return steps.total() * weights.total / read


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("lengths", [[64], [5, 80, 33]])
def test_every_policy_comes_within_half_a_layer_of_a_byte_ratio(
    policy: Policy, lengths: list[int]
) -> None:
    weights, order = (
        equal_layers(30),
        DepthSchedule(30, 0.9, 0, 1, 1, tuple(map(str, range(1, 29)))),
    )
    for ratio in (1.1, 1.25, 1.5, 2.0):
        found = at_byte_ratio(policy, order, weights, lengths, ratio)
        assert isinstance(found, DepthSchedule)
        ours = slow_ratio(found, weights, lengths)
        assert ours == pytest.approx(byte_ratio_of(found, weights, lengths))
        # One layer for all tokens is 100 of about 3,000 bytes.
        assert abs(weights.total / ours - weights.total / ratio) < 60
        family = schedules_of(policy, order, weights, lengths)
        assert all(
            abs(slow_ratio(one, weights, lengths) - ratio) >= abs(ours - ratio) - 1e-9
            for one in family
            if isinstance(one, DepthSchedule)
        )


@pytest.mark.parametrize("policy", Policy)
def test_a_family_saves_more_and_more(policy: Policy) -> None:
    weights = WeightBytes(tuple(LayerBytes(10 + n, 30) for n in range(12)), 50)
    order = DepthSchedule(12, 0.9, 0, 1, 1, tuple(map(str, range(10, 0, -1))))
    found = [
        byte_ratio_of(one, weights, [40]) for one in schedules_of(policy, order, weights, [40])
    ]
    assert len(found) >= 10
    assert found == sorted(found)
    assert 1 < found[0] < found[-1]


@pytest.mark.parametrize("policy", [Policy.UNIFIED, Policy.SKIPDECODE])
def test_a_model_of_two_layers_is_too_small(policy: Policy) -> None:
    order = DepthSchedule(2, 0.9, skip_order=("1",))
    assert at_byte_ratio(policy, order, equal_layers(2), [20], 1.2) is None


@pytest.mark.parametrize("policy", Policy)
def test_a_schedule_is_read_back_as_it_was_written(policy: Policy) -> None:
    weights, order = equal_layers(12), shallow_first(12, 0.9)
    orders: list[Schedule] = [order]
    if policy in (Policy.D3, Policy.STATIC):
        orders.append(PromptSchedule(12, 0.9, 0, 3, 3, order.skip_order))
        parts = tuple(f"{n}.{part}" for n in range(3, 9) for part in ("attn", "mlp"))
        orders.append(PromptSchedule(12, 0.9, 0, 3, 3, parts, weights.weights(parts)))
    for one in orders:
        schedule = at_byte_ratio(policy, one, weights, [50], 1.3)
        assert schedule is not None
        assert schedule_from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


def test_a_reader_that_knows_only_alpha_refuses_a_linear_schedule() -> None:
    data = skipdecode(8, 8, 4, 20).to_json()
    with pytest.raises(ScheduleError, match="it has no alpha"):
        DepthSchedule.from_json(data)
    with pytest.raises(ScheduleError, match="its depth falls 'cubic'"):
        schedule_from_json(data | {"fall": "cubic"})


@pytest.mark.parametrize(
    "fields", [{"highest": 9.0}, {"highest": 3.0}, {"until": 0}, {"until": 1.5}, {"alpha": 0.9}]
)
def test_a_line_outside_the_model_is_refused(fields: dict[str, float]) -> None:
    good = {"num_layers": 8, "skip_order": ("1", "2", "3", "4"), "highest": 8.0, "until": 20}
    assert LinearSchedule(**good).floor == 4
    with pytest.raises(ScheduleError):
        LinearSchedule(**good | fields)
