"""What the depth options mean for a model."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.errors import ScheduleError
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.resolve import resolve_schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import LayerBytes, WeightBytes
from tests.depth.layers import equal_layers, shallow_first

MODEL = equal_layers(16)


def test_without_calibration_auto_is_full_depth() -> None:
    assert resolve_schedule(MODEL) == DepthSchedule.full(16)
    assert resolve_schedule(MODEL, start=3, units="sublayer").units == ()


def test_an_explicit_alpha_takes_its_order_from_the_prompt() -> None:
    flex = tuple(str(layer) for layer in range(4, 12))
    weights = (1.0,) * 8
    expected = PromptSchedule(16, 0.99, 0, 4, 4, flex, weights)
    assert resolve_schedule(MODEL, 0.99) == expected
    assert resolve_schedule(MODEL, 0.99, units="layer") == expected


def test_sublayers_weigh_their_share_of_the_bytes() -> None:
    schedule = resolve_schedule(MODEL, 0.99, core_first=14, core_last=1, units="sublayer")
    assert schedule == PromptSchedule(16, 0.99, 0, 14, 1, ("14.attn", "14.mlp"), (0.25, 0.75))


def test_nested_weights_lose_low_planes_of_all_layers() -> None:
    nested = WeightBytes((LayerBytes(30, 90, 5, 15, 45),) * 4, 10)
    for units in ("auto", "plane"):
        schedule = resolve_schedule(nested, 0.99, core_first=2, units=units)
        assert isinstance(schedule, PromptSchedule)
        assert schedule.kind == "plane"
        assert schedule.units == nested.unit_names("plane")
        assert schedule.floor == pytest.approx(2)
    whole = resolve_schedule(nested, 0.99, units="layer")
    assert whole == resolve_schedule(equal_layers(4), 0.99)


def test_other_weights_have_no_planes_to_drop() -> None:
    with pytest.raises(ScheduleError, match="model is loaded without any") as caught:
        resolve_schedule(MODEL, 0.99, units="plane")
    assert caught.value.hint == 'load it with quantization="nested"'
    for alpha in (1.0, "auto", "off"):  # full depth drops nothing
        assert resolve_schedule(MODEL, alpha, units="plane").units == ()


@given(st.integers(1, 100))
def test_a_model_of_any_depth_keeps_half_of_its_layers(num_layers: int) -> None:
    schedule = resolve_schedule(equal_layers(num_layers), 0.5)
    assert schedule.floor >= num_layers / 2
    assert isinstance(schedule, PromptSchedule) == bool(schedule.units) == (num_layers > 2)


def test_alpha_1_and_a_model_that_is_all_core_have_a_fixed_schedule() -> None:
    for schedule in (
        resolve_schedule(MODEL, 1.0, start=3),
        resolve_schedule(MODEL, 0.9, core_first=16),
        resolve_schedule(equal_layers(1), 0.9),
    ):
        assert isinstance(schedule, DepthSchedule)
        assert schedule.depth(1000) == schedule.num_layers


def test_off_is_full_depth_whatever_is_stored() -> None:
    stored = shallow_first(8, 0.5)
    assert resolve_schedule(equal_layers(8), "off", stored=stored) == DepthSchedule.full(8)


def test_a_stored_schedule_is_used_and_each_flag_overrides_its_field() -> None:
    stored = DepthSchedule(16, 0.98, 7, 2, 2, ("9", "5.mlp", "3"), (1.0, 0.6, 1.0))
    assert resolve_schedule(MODEL, stored=stored, units="sublayer") == stored
    changed = resolve_schedule(MODEL, 0.9, start=3, core_first=4, stored=stored)
    assert changed == DepthSchedule(16, 0.9, 3, 4, 2, ("9", "5.mlp"), (1.0, 0.6))


def test_core_layers_keep_their_low_planes_in_the_order() -> None:
    order = ("1.attn.lo", "9.mlp.lo", "3", "9.mlp")
    stored = DepthSchedule(16, 0.98, 7, 2, 2, order, (0.1, 0.3, 1.0, 0.3))
    changed = resolve_schedule(MODEL, core_first=4, stored=stored)
    assert changed.units == ("1.attn.lo", "9.mlp.lo", "9.mlp")


def test_a_stored_schedule_of_another_model_is_refused() -> None:
    with pytest.raises(ScheduleError, match="8 layers"):
        resolve_schedule(MODEL, stored=DepthSchedule.full(8))


def test_unknown_units_are_refused() -> None:
    with pytest.raises(ScheduleError, match="units is 'neuron'"):
        resolve_schedule(MODEL, 0.9, units="neuron")


def test_core_sizes_beyond_the_model_are_refused() -> None:
    with pytest.raises(ScheduleError, match="do not fit"):
        resolve_schedule(MODEL, 0.9, core_first=20)


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
    field: str, value: Any, stored: DepthSchedule | None
) -> None:
    with pytest.raises(ScheduleError) as refused:
        resolve_schedule(MODEL, stored=stored, **{field: value})
    assert refused.value.field == field
    with pytest.raises(ScheduleError) as refused:
        DepthSchedule(16, **{field: value})
    assert refused.value.field == field
