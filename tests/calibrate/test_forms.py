"""Which forms of the weights are searched, and orders over the units of nested weights."""

from typing import ClassVar

import numpy as np
import pytest

from d3cli.base.errors import NotEnoughMemoryError
from d3cli.calibrate.costs import StepCosts, Yardstick, costs_by_bytes
from d3cli.calibrate.forms import load_forms, with_contenders
from d3cli.calibrate.mixed_order import OrderOfSingles, in_legal_order, worth_scoring
from d3cli.calibrate.race import Tried
from d3cli.calibrate.result import FormTried
from d3cli.calibrate.space import Candidate, score_prefixes
from d3cli.calibrate.unit_order import fixed_order
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import LayerBytes, Part, WeightBytes
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Drop, Losses

NESTED = WeightBytes((LayerBytes(100, 300, 0, 50, 150),) * 5, fixed=200, layer_weights=5)


def form(name: str, speed: float, drop: float, reach: float | None = None) -> FormTried:
    candidate = Candidate(DepthSchedule.full(5), None, speed, speed, 0.0)
    full = Tried(candidate, 20, Drop(drop, drop - 0.001, drop + 0.001))
    return FormTried(None, name, 0.01, full, speed if reach is None else reach)


def searched(*forms: FormTried, target: float = 0.01) -> list[str]:
    return [one.form for one in with_contenders(forms, target) if one.searched]


def test_a_form_is_not_searched_if_a_faster_one_is_about_as_good() -> None:
    stored, eight, four = form("stored", 1, 0), form("int8", 1.9, 0.001), form("int4", 3, 0.002)
    assert searched(stored, eight, four) == ["int4"]
    found = {one.form: one for one in with_contenders([stored, eight, four], 0.01)}
    assert found["stored"].dominated_by == found["int8"].dominated_by == "int4"


def test_a_form_that_certainly_exceeds_the_target_is_not_searched() -> None:
    stored, eight, four = form("stored", 1, 0), form("int8", 1.9, 0.001), form("int4", 3, 0.05)
    assert searched(stored, eight, four) == ["int8"]
    assert searched(stored, eight, four, target=0.1) == ["int4", "int8"]


def test_nested_weights_count_with_their_speed_without_low_planes() -> None:
    nested, eight = form("nested", 1.7, 0.001, reach=2.8), form("int8", 1.9, 0.001)
    assert searched(nested, eight) == ["int8", "nested"]
    assert searched(nested, eight, form("int4", 2.8, 0.002)) == ["int4"]


def test_times_are_predicted_from_the_parts_that_are_dropped() -> None:
    rates, low = {Part.ATTN: 2.0, Part.MLP: 1.0}, {Part.ATTN: 3.0, Part.MLP: 0.5}
    costs = StepCosts(NESTED, 4000.0, rates, repair=100.0, per_low_byte=low)
    order = ["1.attn.lo", "1.attn", "2", "3.mlp.lo"]
    expected = [150, 100, 50 * 3 + 50 * 2 + 150 * 0.5 + 150 * 1, 75]
    assert costs.saved(order) == pytest.approx(expected)
    full = Yardstick(costs, costs, 11)
    assert full.full_depth == (1, 1)
    nbytes, speed = full.ratios(10 * 400, 10 * 100)
    assert nbytes == pytest.approx(10 * 2200 / (11 * 2200 - 4000))
    assert speed == pytest.approx(10 * 4000 / (10 * 4100 - 1000))
    assert full.without_low_planes == pytest.approx(4000 / (4000 - 5 * (150 + 75)))


class MadeUpLosses:
    """An evaluator whose units lose made-up amounts on four documents of one token."""

    documents = (Document([1], [1]),) * 4
    LOSSES: ClassVar = {
        **{f"{layer}.{part}.lo": 0.001 * (layer + 1) for layer in range(5) for part in Part},
        **{"1.mlp": 0.5, "2.attn": 0.02, "3.attn": 0.0041, "2": 0.1},
    }

    def remember(self, *_: object) -> None:
        pass

    def full_losses(self, count: int) -> Losses:
        return [np.full(1, 0.01)] * count

    def losses(self, schedule: DepthSchedule, count: int) -> Losses:
        lost = 0.01 + sum(self.LOSSES[unit] for unit in schedule.skip_order)
        return [np.array([lost])] * count


def test_low_planes_and_coarse_units_are_sorted_by_their_loss_per_byte() -> None:
    ranking = list(MadeUpLosses.LOSSES)
    singles = OrderOfSingles(NESTED, MadeUpLosses(), 4, ranking)
    tried = [one.skip_order for one in singles]
    assert tried == [(name,) for name in ranking]  # each once
    order = singles.order
    # Attention of layer 3 loses hardly more than its low plane, so it goes in its place.
    assert order[0] == "3.attn" and "3.attn.lo" not in order
    assert order.index("2.attn.lo") < order.index("2.attn") and "2" not in order
    assert order[-1] == "1.mlp" and order.index("1.mlp.lo") < order.index("4.mlp.lo")
    fixed_order(costs_by_bytes(NESTED, 10), "mixed", order).schedule(len(order), 0.9, 0)


def test_units_that_can_no_longer_be_dropped_are_left_out() -> None:
    names = ["1.attn", "1.attn.lo", "1", "2", "2.mlp", "3.mlp.lo", "3.mlp"]
    assert in_legal_order(names) == ["1.attn", "2", "3.mlp.lo", "3.mlp"]


def test_all_low_planes_and_a_few_coarse_units_are_scored() -> None:
    ranking = [f"{layer}{end}" for layer in range(20) for end in (".attn.lo", ".attn", "")]
    found = worth_scoring(ranking)
    assert len([name for name in found if name.endswith(".lo")]) == 20
    assert [name for name in found if name.isdigit()] == [str(layer) for layer in range(6)]
    assert found[-1] == "19.attn.lo"


def test_losses_between_scored_prefixes_grow_evenly() -> None:
    order = fixed_order(costs_by_bytes(NESTED, 10), "plane", [f"{n}.mlp.lo" for n in range(5)])
    evaluator = MadeUpLosses()
    found = [float(losses[0][0]) for losses in score_prefixes(evaluator, order, 4, 1e9, stride=2)]
    whole = [float(losses[0][0]) for losses in score_prefixes(evaluator, order, 4, 1e9)]
    assert len(found) == len(whole) == 6
    assert [found[n] for n in (0, 2, 4, 5)] == pytest.approx([whole[n] for n in (0, 2, 4, 5)])
    assert found[1] == pytest.approx((whole[0] + whole[2]) / 2)
    short = list(score_prefixes(evaluator, order, 4, 0.012, stride=2))
    assert len(short) == 3


class Loads:
    """Loads the built-in model in the forms that there is memory for."""

    def __init__(self, *fitting: str | None) -> None:
        self.fitting, self.asked = fitting, []

    def __call__(self, quantization: str | None) -> LoadedModel:
        self.asked.append(quantization)
        if quantization not in self.fitting:
            raise NotEnoughMemoryError(f"no room for {quantization}")
        return load_model(dtype="bfloat16", device="cpu", quantization=quantization)


def test_the_model_as_stored_is_what_forms_are_compared_with() -> None:
    forms = load_forms(Loads(None))
    assert (forms.reference, forms.why_not_as_stored) == (None, "")
    assert set(forms.others) == {"int8", "nested", "int4"}


def test_nested_weights_take_its_place_where_it_does_not_fit() -> None:
    loads = Loads("nested")
    forms = load_forms(loads)
    assert loads.asked == [None, "nested"]
    assert forms.model.weight_bytes.is_nested and forms.reference == "nested"
    assert forms.why_not_as_stored == "no room for None"
    assert forms.others == ("int8", "int4")


def test_where_nested_weights_do_not_fit_either_it_is_refused() -> None:
    loads = Loads("int4")
    with pytest.raises(NotEnoughMemoryError, match="no room for None"):
        load_forms(loads)
    assert loads.asked == [None, "nested"]


def test_a_model_that_is_too_large_to_score_makes_room_for_nested_weights() -> None:
    loads = Loads(None, "nested")
    forms = load_forms(loads).against_nested("no room to score")
    assert forms.model.weight_bytes.is_nested and forms.reference == "nested"
    assert forms.why_not_as_stored == "no room to score"
    assert forms.others == ("int8", "int4")
    assert forms.take("nested") is forms.model and loads.asked == [None, "nested"]
