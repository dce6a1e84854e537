"""The depth schedule: pure arithmetic, checked over random schedules."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.errors import ScheduleError
from d3cli.depth.choice import resolve_schedule
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import LayerBytes, WeightBytes, parse_unit
from tests.depth.layers import equal_layers, shallow_first

ATTN_SHARE = 0.25


@st.composite
def any_schedule(draw: st.DrawFn, *, whole_layers: bool = False) -> DepthSchedule:
    num_layers = draw(st.integers(2, 40))
    core_first = draw(st.integers(0, num_layers - 1))
    core_last = draw(st.integers(1, num_layers - core_first))
    names = []
    for layer in range(core_first, num_layers - core_last):
        parts = [
            [str(layer)],
            [f"{layer}.attn"],
            [f"{layer}.mlp"],
            [f"{layer}.attn", f"{layer}.mlp"],
        ]
        names += draw(st.sampled_from(parts[:1] if whole_layers else [[], *parts]))
    order = tuple(draw(st.permutations(names)))
    shares = {None: 1.0, "attn": ATTN_SHARE, "mlp": 1 - ATTN_SHARE}
    alpha = draw(st.floats(0.0, 1.0, exclude_min=True))
    return DepthSchedule(
        num_layers,
        alpha,
        draw(st.integers(0, 50)),
        core_first,
        core_last,
        order,
        tuple(shares[parse_unit(name).part] for name in order),
    )


steps = st.integers(0, 2000)


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
def test_core_layers_are_never_dropped(schedule: DepthSchedule, t: int) -> None:
    for name in schedule.dropped(t):
        layer = parse_unit(name).layer
        assert schedule.core_first <= layer < schedule.num_layers - schedule.core_last


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


@given(any_schedule(), st.integers(2, 300))
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
        {"skip_order": ("-3",)},
        {"skip_order": tuple("01234567")},
        {"skip_order": tuple(f"{i}.attn" for i in range(8)), "weights": (0.5,) * 8},
    ],
)
def test_impossible_schedules_are_refused(fields: dict) -> None:
    with pytest.raises(ScheduleError):
        DepthSchedule(**({"num_layers": 8} | fields))


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
    assert weights.weight("1.attn") == 0.25
    assert weights.weight("1.mlp") == 0.75
    assert weights.weight("1") == 1
    assert (weights.of("0"), weights.of("0.attn"), weights.total) == (125, 30, 261)
