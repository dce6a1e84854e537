"""The depth schedule: pure arithmetic, checked over random schedules."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.errors import ScheduleError
from d3cli.depth.resolve import resolve_schedule
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import LayerBytes, WeightBytes, parse_unit
from tests.depth.layers import (
    any_order,
    any_weights,
    equal_layers,
    read_plane_by_plane,
    shallow_first,
)


@st.composite
def any_schedule(draw: st.DrawFn, *, whole_layers: bool = False) -> DepthSchedule:
    return draw(schedule_and_weights(whole_layers=whole_layers))[0]


@st.composite
def schedule_and_weights(
    draw: st.DrawFn, *, whole_layers: bool = False
) -> tuple[DepthSchedule, WeightBytes]:
    num_layers = draw(st.integers(2, 40 if whole_layers else 12))
    core_first = draw(st.integers(0, num_layers - 1))
    core_last = draw(st.integers(1, num_layers - core_first))
    if whole_layers:
        weights = equal_layers(num_layers)
        flex = list(map(str, range(core_first, num_layers - core_last)))
        order = tuple(draw(st.permutations(flex)))
    else:
        weights = draw(any_weights(num_layers))
        order = draw(any_order(weights, core_first, core_last))
    schedule = DepthSchedule(
        num_layers,
        draw(st.floats(0.0, 1.0, exclude_min=True)),
        draw(st.integers(0, 50)),
        core_first,
        core_last,
        order,
        weights.weights(order),
    )
    return schedule, weights


steps = st.integers(0, 2000)


def test_a_depth_that_does_not_change_is_said_to_be_constant() -> None:
    order = ("2", "3", "4")
    constant = static_schedule(equal_layers(8), order)
    assert constant.in_words() == "constant from token 1 on, 5 of 8 layers"
    decaying = DepthSchedule(8, 0.97, 1, 2, 3, order, (1.0,) * 3)
    assert decaying.in_words() == "alpha 0.97 from token 1, down to 5 of 8 layers"


def test_low_planes_are_said_to_be_layers_by_weight() -> None:
    nested = WeightBytes((LayerBytes(4, 12, 0, 2, 6),) * 4, 10)
    low = nested.unit_names("plane")
    constant = static_schedule(nested, low)
    expected = "constant from token 1 on, 2 of 4 layers by weight, low planes only"
    assert constant.in_words() == expected
    mixed = static_schedule(nested, (*low, "1.mlp"))
    assert mixed.in_words() == "constant from token 1 on, 1.625 of 4 layers by weight"
    assert replace(mixed, alpha=0.9).in_words().endswith("down to 1.625 of 4 layers by weight")


@given(any_schedule(), steps)
def test_depth_never_grows_within_a_reply(schedule: DepthSchedule, t: int) -> None:
    assert schedule.depth(t + 1) <= schedule.depth(t)


@given(any_schedule(), steps)
def test_active_units_are_nested(schedule: DepthSchedule, t: int) -> None:
    assert set(schedule.dropped(t)) <= set(schedule.dropped(t + 1))


@given(any_schedule(), steps)
def test_the_floor_holds(schedule: DepthSchedule, t: int) -> None:
    assert schedule.depth(t) >= schedule.floor
    assert schedule.floor == pytest.approx(schedule.num_layers - sum(schedule.weights))


@given(any_schedule(), steps)
def test_core_layers_lose_nothing_but_low_planes(schedule: DepthSchedule, t: int) -> None:
    for name in schedule.dropped(t):
        layer = parse_unit(name).layer
        flex = schedule.core_first <= layer < schedule.num_layers - schedule.core_last
        assert flex or name.endswith(".lo")


@given(schedule_and_weights(), steps)
def test_bytes_read_are_those_of_all_planes_that_are_left(
    both: tuple[DepthSchedule, WeightBytes], t: int
) -> None:
    schedule, weights = both
    dropped = schedule.dropped(t)
    assert weights.read(dropped) == read_plane_by_plane(weights, dropped)
    by_dropped = weights.read_by_dropped(schedule.skip_order)
    assert by_dropped[schedule.num_dropped(t)] == weights.read(dropped)
    assert by_dropped == sorted(set(by_dropped), reverse=True)
    before = [weights.of(name, dropped[:at]) for at, name in enumerate(dropped)]
    assert before == weights.saved(dropped)


@given(schedule_and_weights(), steps)
def test_depth_is_the_weight_of_what_is_left(
    both: tuple[DepthSchedule, WeightBytes], t: int
) -> None:
    schedule, weights = both
    dropped, left = schedule.dropped(t), 0.0
    for index, layer in enumerate(weights.layers):
        if str(index) not in dropped:
            one = WeightBytes((replace(layer, other=0),), 0)
            mine = [name.partition(".")[2] for name in dropped if name.startswith(f"{index}.")]
            left += read_plane_by_plane(one, [f"0.{part}" for part in mine]) / one.total
    assert schedule.depth(t) == pytest.approx(left)
    assert schedule.floor > 0


@given(any_schedule(), steps)
def test_alpha_1_is_full_depth(schedule: DepthSchedule, t: int) -> None:
    plain = resolve_schedule(equal_layers(schedule.num_layers), 1.0, stored=schedule)
    assert plain.dropped(t) == ()
    assert plain.depth(t) == schedule.num_layers


@given(any_schedule())
def test_the_first_tokens_run_at_full_depth(schedule: DepthSchedule) -> None:
    assert all(schedule.depth(t) == schedule.num_layers for t in range(schedule.start + 1))


@given(any_schedule(whole_layers=True), steps)
def test_whole_layers_follow_the_papers_formula(schedule: DepthSchedule, t: int) -> None:
    decayed = schedule.num_layers * schedule.alpha ** max(0, t - schedule.start)
    # Next to a whole number rounding decides: the schedule accepts 1e-9 less.
    nearby = {max(schedule.floor, math.floor(decayed + nudge)) for nudge in (-1e-6, 0, 1e-6)}
    assert schedule.depth(t) in nearby


@given(any_schedule(), steps)
def test_depth_stops_at_the_last_unit_that_is_needed(schedule: DepthSchedule, t: int) -> None:
    decayed = schedule.num_layers * schedule.alpha ** max(0, t - schedule.start)
    count = schedule.num_dropped(t)
    if count < len(schedule.skip_order):
        assert schedule.depth(t) <= decayed + 1e-6
    if count:
        one_less = schedule.num_layers - sum(schedule.weights[: count - 1])
        assert one_less > decayed - 1e-6


def test_any_alpha_below_1_drops_one_layer_at_once() -> None:
    schedule = shallow_first(32, 0.999_999, start=10)
    assert [schedule.depth(t) for t in (10, 11, 500)] == [32, 31, 31]


def test_the_known_depths_of_the_paper_shape() -> None:
    schedule = shallow_first(32, 0.99)
    assert [schedule.depth(t) for t in (0, 1, 50, 100, 1000)] == [32, 31, 19, 16, 16]


@given(any_schedule(), st.integers(1, 60), st.integers(1, 60))
def test_prefix_lengths_say_where_each_unit_runs(
    schedule: DepthSchedule, prompt_len: int, new_tokens: int
) -> None:
    lengths = schedule.prefix_lengths(prompt_len, new_tokens)
    assert list(lengths) == list(schedule.skip_order)
    for name, length in lengths.items():
        runs = [name not in schedule.dropped(t) for t in range(1, new_tokens)]
        assert length == prompt_len + sum(runs)
        assert runs == sorted(runs, reverse=True)


@given(any_schedule())
def test_json_round_trip(schedule: DepthSchedule) -> None:
    assert DepthSchedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


@given(schedule_and_weights(), st.integers(2, 40))
def test_byte_ratios_follow_the_bytes(
    both: tuple[DepthSchedule, WeightBytes], new_tokens: int
) -> None:
    schedule, weights = both
    read = [read_plane_by_plane(weights, schedule.dropped(t)) for t in range(1, new_tokens)]
    ratio = weights.total * len(read) / sum(read)
    assert schedule.byte_ratio(new_tokens, weights) == pytest.approx(ratio)


@given(any_schedule(whole_layers=True), st.integers(2, 300))
def test_ratios_follow_the_depths(schedule: DepthSchedule, new_tokens: int) -> None:
    depths = [schedule.depth(t) for t in range(1, new_tokens)]
    assert schedule.mean_depth(new_tokens) == pytest.approx(sum(depths) / len(depths))
    layer = LayerBytes(attn=25, mlp=75)
    for fixed in (0, 37, 5000):
        weights = WeightBytes((layer,) * schedule.num_layers, fixed)
        ratio = schedule.layer_ratio(new_tokens)
        x = fixed / (100 * schedule.num_layers)
        expected = ratio * (1 + x) / (1 + ratio * x)
        assert schedule.byte_ratio(new_tokens, weights) == pytest.approx(expected)
        net = schedule.byte_ratio(new_tokens, weights, net_of_repair=True)
        assert net < schedule.byte_ratio(new_tokens, weights)


def test_a_reply_of_one_token_has_no_decode_step() -> None:
    schedule = shallow_first(8, 0.5)
    weights = WeightBytes((LayerBytes(1, 1),) * 8, 1)
    assert schedule.mean_depth(1) == 8
    assert schedule.byte_ratio(1, weights) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": 0.0},
        {"alpha": 1.01},
        {"alpha": math.nan},
        {"alpha": -1.0},
        {"start": -1},
        {"core_first": -1},
        {"core_first": 5, "core_last": 4},
        {"num_layers": 0},
        {"skip_order": ("8",)},
        {"skip_order": ("0",), "core_first": 1},
        {"skip_order": ("7",), "core_last": 1},
        {"skip_order": ("3", "3")},
        {"skip_order": ("3", "3.attn"), "weights": (1.0, 0.5)},
        {"skip_order": ("3.attn", "3"), "weights": (0.5, 1.0)},
        {"skip_order": ("3.attn", "3.attn"), "weights": (0.5, 0.5)},
        {"skip_order": ("3.attn",)},
        {"skip_order": ("3",), "weights": (0.5,)},
        {"skip_order": ("3.attn",), "weights": (0.0,)},
        {"skip_order": ("3",), "weights": (1.0, 1.0)},
        {"skip_order": ("three",)},
        {"skip_order": ("3.norm",), "weights": (0.5,)},
        {"skip_order": ("3.lo",), "weights": (0.5,)},
        {"skip_order": ("3.attn.hi",), "weights": (0.2,)},
        {"skip_order": ("3.attn.lo.lo",), "weights": (0.2,)},
        {"skip_order": ("8.attn.lo",), "weights": (0.2,)},
        {"skip_order": ("3.attn.lo",)},
        {"skip_order": ("3.attn.lo", "3.attn.lo"), "weights": (0.2, 0.2)},
        {"skip_order": ("3.attn", "3.attn.lo"), "weights": (0.5, 0.2)},
        {"skip_order": ("3", "3.attn.lo"), "weights": (1.0, 0.2)},
        {"skip_order": ("3.attn.lo", "3"), "weights": (0.2, 1.0)},
        {"skip_order": ("3.attn.lo", "3"), "weights": (0.2, 0.7)},
        {"skip_order": ("3.attn.lo", "3.attn", "3.mlp"), "weights": (0.2, 0.2, 0.7)},
        {"skip_order": ("-3",)},
        {"skip_order": tuple("01234567")},
        {"skip_order": tuple(f"{i}.attn" for i in range(8)), "weights": (0.5,) * 8},
    ],
)
def test_impossible_schedules_are_refused(fields: dict) -> None:
    with pytest.raises(ScheduleError):
        DepthSchedule(**({"num_layers": 8} | fields))


@pytest.mark.parametrize(
    ("order", "weights"),
    [
        (("3.attn.lo", "3"), (0.2, 0.8)),
        (("3.mlp.lo", "3.attn.lo", "3.mlp", "3.attn"), (0.4, 0.1, 0.3, 0.2)),
        (("0.attn.lo", "7.mlp.lo", "3"), (0.1, 0.4, 1.0)),  # of core layers
        (tuple(f"{i}.attn.lo" for i in range(8)), (0.5,) * 8),  # attention stays, at 4 bits
    ],
)
def test_low_planes_go_first_and_may_go_everywhere(
    order: tuple[str, ...], weights: tuple[float, ...]
) -> None:
    schedule = DepthSchedule(8, 0.5, 0, 1, 1, order, weights)
    assert schedule.dropped(10**6) == order
    assert schedule.floor == pytest.approx(8 - sum(weights))


@pytest.mark.parametrize(
    "damage",
    [
        {"alpha": "steep"},
        {"start": 1.5},
        {"skip_order": None},
        {"weights": ["x"]},
        {"num_layers": None},
        {"core_first": "1"},
    ],
)
def test_damaged_json_is_refused(damage: dict) -> None:
    data = shallow_first(8, 0.9).to_json()
    with pytest.raises(ScheduleError):
        DepthSchedule.from_json(data | damage)
    with pytest.raises(ScheduleError):
        DepthSchedule.from_json({key: data[key] for key in data if key != next(iter(damage))})


def test_a_sublayer_weighs_its_share_of_the_layers_bytes() -> None:
    weights = WeightBytes((LayerBytes(attn=30, mlp=90, other=5),) * 2, fixed=11)
    assert weights.weights(("1.attn", "1.mlp", "0")) == (0.25, 0.75, 1)
    assert (weights.of("0"), weights.of("0.attn"), weights.total) == (125, 30, 261)


def test_after_its_low_plane_a_unit_weighs_and_saves_the_rest() -> None:
    layer = LayerBytes(attn=30, mlp=90, other=5, attn_low=10, mlp_low=40)
    weights = WeightBytes((layer,) * 3, fixed=11, layer_weights=3 * 100)
    order = ("1.attn.lo", "1.attn", "0.mlp.lo", "0", "1.mlp", "2.attn.lo")
    assert weights.saved(order) == [10, 20, 40, 85, 90, 10]
    assert weights.weights(order) == pytest.approx([1 / 12, 2 / 12, 4 / 12, 8 / 12, 9 / 12, 1 / 12])
    assert weights.read(order) == 11 + 5 + 115
    assert weights.bits(weights.total) == pytest.approx(8 * 125 / 100)
    assert weights.bits(weights.read(order)) == pytest.approx(8 * 120 / 300)


def test_units_are_those_that_have_weights() -> None:
    nested = WeightBytes((LayerBytes(30, 90, 5, 10, 0), LayerBytes(30, 90, 5, 10, 40)), fixed=11)
    assert nested.unit_names("plane") == ("0.attn.lo", "1.attn.lo", "1.mlp.lo")
    assert nested.is_nested
    assert equal_layers(2).unit_names("plane") == ()
    assert equal_layers(2).unit_names("sublayer") == ("0.attn", "0.mlp", "1.attn", "1.mlp")
    assert not equal_layers(2).is_nested
    assert equal_layers(2).bits(50) is None
    assert not nested.has("2.attn.lo")
