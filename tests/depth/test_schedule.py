"""The depth schedule: pure arithmetic, checked over random schedules."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.errors import ScheduleError
from d3cli.depth.choice import resolve_schedule
from d3cli.depth.prompt_order import PromptSchedule
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
    assert constant.in_words() == "constant, 5 of 8 layers from token 1 on"
    decaying = DepthSchedule(8, 0.97, 1, 2, 3, order, (1.0,) * 3)
    assert decaying.in_words() == "alpha 0.97 from token 1, down to 5 of 8 layers"


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


class TestResolving:
    MODEL = equal_layers(16)

    def test_without_calibration_auto_is_full_depth(self) -> None:
        assert resolve_schedule(self.MODEL) == DepthSchedule.full(16)
        assert resolve_schedule(self.MODEL, start=3, units="sublayer").units == ()

    def test_an_explicit_alpha_takes_its_order_from_the_prompt(self) -> None:
        flex = tuple(str(layer) for layer in range(4, 12))
        weights = (1.0,) * 8
        expected = PromptSchedule(16, 0.99, 0, 4, 4, flex, weights)
        assert resolve_schedule(self.MODEL, 0.99) == expected
        assert resolve_schedule(self.MODEL, 0.99, units="layer") == expected

    def test_sublayers_weigh_their_share_of_the_bytes(self) -> None:
        schedule = resolve_schedule(self.MODEL, 0.99, core_first=14, core_last=1, units="sublayer")
        assert schedule == PromptSchedule(16, 0.99, 0, 14, 1, ("14.attn", "14.mlp"), (0.25, 0.75))

    def test_nested_weights_lose_low_planes_of_all_layers(self) -> None:
        nested = WeightBytes((LayerBytes(30, 90, 5, 15, 45),) * 4, 10)
        for units in ("auto", "plane"):
            schedule = resolve_schedule(nested, 0.99, core_first=2, units=units)
            assert isinstance(schedule, PromptSchedule)
            assert schedule.kind == "plane"
            assert schedule.units == nested.unit_names("plane")
            assert schedule.floor == pytest.approx(2)
        whole = resolve_schedule(nested, 0.99, units="layer")
        assert whole == resolve_schedule(equal_layers(4), 0.99)

    def test_other_weights_have_no_planes_to_drop(self) -> None:
        with pytest.raises(ScheduleError, match="not nested"):
            resolve_schedule(self.MODEL, 0.99, units="plane")

    @given(st.integers(1, 100))
    def test_a_model_of_any_depth_keeps_half_of_its_layers(self, num_layers: int) -> None:
        schedule = resolve_schedule(equal_layers(num_layers), 0.5)
        assert schedule.floor >= num_layers / 2
        assert isinstance(schedule, PromptSchedule) == bool(schedule.units) == (num_layers > 2)

    def test_alpha_1_and_a_model_that_is_all_core_have_a_fixed_schedule(self) -> None:
        for schedule in (
            resolve_schedule(self.MODEL, 1.0, start=3),
            resolve_schedule(self.MODEL, 0.9, core_first=16),
            resolve_schedule(equal_layers(1), 0.9),
        ):
            assert isinstance(schedule, DepthSchedule)
            assert schedule.depth(1000) == schedule.num_layers

    def test_off_is_full_depth_whatever_is_stored(self) -> None:
        stored = shallow_first(8, 0.5)
        assert resolve_schedule(equal_layers(8), "off", stored=stored) == DepthSchedule.full(8)

    def test_a_stored_schedule_is_used_and_each_flag_overrides_its_field(self) -> None:
        stored = DepthSchedule(16, 0.98, 7, 2, 2, ("9", "5.mlp", "3"), (1.0, 0.6, 1.0))
        assert resolve_schedule(self.MODEL, stored=stored, units="sublayer") == stored
        changed = resolve_schedule(self.MODEL, 0.9, start=3, core_first=4, stored=stored)
        assert changed == DepthSchedule(16, 0.9, 3, 4, 2, ("9", "5.mlp"), (1.0, 0.6))

    def test_core_layers_keep_their_low_planes_in_the_order(self) -> None:
        order = ("1.attn.lo", "9.mlp.lo", "3", "9.mlp")
        stored = DepthSchedule(16, 0.98, 7, 2, 2, order, (0.1, 0.3, 1.0, 0.3))
        changed = resolve_schedule(self.MODEL, core_first=4, stored=stored)
        assert changed.units == ("1.attn.lo", "9.mlp.lo", "9.mlp")

    def test_a_stored_schedule_of_another_model_is_refused(self) -> None:
        with pytest.raises(ScheduleError, match="8 layers"):
            resolve_schedule(self.MODEL, stored=DepthSchedule.full(8))

    def test_unknown_units_are_refused(self) -> None:
        with pytest.raises(ScheduleError, match="units is 'neuron'"):
            resolve_schedule(self.MODEL, 0.9, units="neuron")

    def test_core_sizes_beyond_the_model_are_refused(self) -> None:
        with pytest.raises(ScheduleError, match="do not fit"):
            resolve_schedule(self.MODEL, 0.9, core_first=20)

    @pytest.mark.parametrize("stored", [None, shallow_first(16, 0.99)])
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("alpha", "banana"),
            ("alpha", True),
            ("start", "200%"),
            ("start", 1.5),
            ("core_first", "3"),
            ("core_first", 99),
            ("core_last", True),
            ("core_last", 99),
        ],
    )
    def test_the_error_names_the_setting_at_fault(
        self, field: str, value: Any, stored: DepthSchedule | None
    ) -> None:
        with pytest.raises(ScheduleError) as refused:
            resolve_schedule(self.MODEL, stored=stored, **{field: value})
        assert refused.value.field == field
        with pytest.raises(ScheduleError) as refused:
            DepthSchedule(16, **{field: value})
        assert refused.value.field == field


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
