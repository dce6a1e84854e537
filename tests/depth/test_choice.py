"""The choice of a schedule, its source and its notes, without any model."""

from dataclasses import replace

import pytest

from d3cli.base.errors import ScheduleError, spelled
from d3cli.depth.calibration_store import Stale
from d3cli.depth.choice import Choice, Source, choose
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.schedule import DepthSchedule, schedule_of
from d3cli.depth.units import LayerBytes, WeightBytes
from tests.depth.layers import equal_layers
from tests.records import FOUND

MODEL = equal_layers(16)
STORED = DepthSchedule(16, 0.98, 8, 2, 2, ("9", "7", "5"))


def texts(choice: Choice) -> list[str]:
    return [spelled(note) for note in choice.notes]


def test_off_is_full_depth_whatever_is_stored() -> None:
    choice = choose(MODEL, "off", stored=STORED, calibration=FOUND)
    assert choice == Choice(DepthSchedule.full(16), Source.OFF)


def test_a_calibration_runs_and_reports_its_cost() -> None:
    choice = choose(MODEL, stored=FOUND.schedule, calibration=FOUND)
    assert (choice.schedule, choice.source) == (FOUND.schedule, Source.CALIBRATION)
    (note,) = texts(choice)
    assert note.startswith("depth: calibrated: +0.80% perplexity (1% was allowed), alpha 0.98")


def test_a_shipped_schedule_runs_without_a_note() -> None:
    assert choose(MODEL, stored=STORED, builtin=True) == Choice(STORED, Source.SHIPPED)


@pytest.mark.parametrize("stored", [None, STORED])
def test_a_stale_calibration_says_why_it_is_not_used(stored: DepthSchedule | None) -> None:
    choice = choose(
        MODEL, stored=stored, calibration=Stale("the weights changed"), builtin=stored is not None
    )
    assert choice.source == (Source.SHIPPED if stored else Source.DEFAULT)
    notes = texts(choice)
    assert "is not used: the weights changed" in notes[0]
    assert notes[0].endswith("; run: d3 calibrate")
    assert ("ships with the model is used instead" in notes[0]) == (stored is not None)
    assert ("full depth is used instead" in notes[0]) == (stored is None)
    assert len(notes) == 1


def test_a_remedy_replaces_the_advice_to_calibrate_again() -> None:
    (note,) = texts(choose(MODEL, calibration=Stale("it is damaged", "move it away")))
    assert note.endswith("it is damaged; full depth is used instead; move it away")


def test_without_calibration_one_line_names_the_command_that_may_find_better() -> None:
    choice = choose(MODEL, calibrate_with="d3 calibrate fox")
    assert (choice.schedule, choice.source) == (DepthSchedule.full(16), Source.DEFAULT)
    assert texts(choice) == [
        "depth: full depth, since this model is not calibrated; d3 calibrate fox may find "
        "something faster"
    ]


def test_options_without_effect_at_full_depth_are_reported() -> None:
    choice = choose(MODEL, start=5, units="sublayer")
    assert choice.source == Source.DEFAULT
    assert texts(choice)[1:] == [
        "depth: start has no effect at full depth; alpha=0.99 lowers it",
        "depth: units has no effect at full depth; alpha=0.99 lowers it",
    ]


def test_an_explicit_alpha_says_that_nobody_has_measured_what_it_costs() -> None:
    choice = choose(MODEL, 0.99, start=3, calibrate_with="d3 calibrate fox")
    assert isinstance(choice.schedule, PromptSchedule)
    assert choice.source == Source.PROMPT
    assert texts(choice) == [
        "depth: alpha 0.99 from token 3, down to 8 of 16 layers, ordered by the prompt; nobody has "
        "measured what it costs: d3 calibrate fox does"
    ]
    stale = choose(MODEL, 0.99, calibration=Stale("the weights changed"))
    assert "is not used: the weights changed; run: d3 calibrate" in texts(stale)[0]
    assert stale.source == Source.PROMPT


def test_alpha_1_asks_for_full_depth() -> None:
    choice = choose(MODEL, 1.0)
    assert (choice.source, choice.notes) == (Source.FLAGS, ())


def test_an_alpha_takes_the_prompts_order_where_the_calibration_is_full_depth() -> None:
    full = DepthSchedule.full(16)
    found = replace(FOUND, schedule=full)
    choice = choose(MODEL, 0.99, units="layer", stored=full, calibration=found)
    assert choice.source == Source.PROMPT
    assert choice.schedule == choose(MODEL, 0.99).schedule
    (note,) = texts(choice)
    assert "ordered by the prompt; nobody has measured what it costs" in note


def test_options_without_effect_on_a_calibration_at_full_depth_are_reported() -> None:
    full = DepthSchedule.full(16)
    found = replace(FOUND, schedule=full)
    choice = choose(MODEL, start=5, units="layer", stored=full, calibration=found)
    assert choice.source == Source.CALIBRATION
    assert texts(choice)[1:] == [
        "depth: start has no effect at full depth; alpha=0.99 lowers it",
        "depth: units has no effect at full depth; alpha=0.99 lowers it",
    ]


def test_units_have_no_effect_on_a_stored_order() -> None:
    choice = choose(MODEL, 0.9, units="sublayer", stored=STORED)
    assert texts(choice) == ["depth: units has no effect: the stored order has its own units"]


def test_any_depth_option_overrides_its_field() -> None:
    choice = choose(MODEL, 0.9, stored=STORED, calibration=FOUND)
    assert (choice.schedule.alpha, choice.schedule.start) == (0.9, 8)
    assert (choice.source, choice.notes) == (Source.FLAGS, ())
    assert choose(MODEL, start=3, stored=STORED).source == Source.FLAGS
    assert choose(MODEL, core_last=3, stored=STORED).source == Source.FLAGS


def test_options_without_effect_are_reported() -> None:
    assert texts(choose(MODEL, 0.9, core_first=1, stored=STORED)) == [
        "depth: lowering core_first or core_last has no effect: the stored order never skips those "
        "layers"
    ]
    (note,) = texts(choose(equal_layers(4), 0.9, core_first=4, core_last=0))
    assert note == "depth: every layer is a core layer, so no layer is dropped"


def test_core_layers_lose_low_planes_whatever_their_number() -> None:
    nested = WeightBytes((LayerBytes(25, 75, 0, 12, 37),) * 4, 10)
    stored = schedule_of(nested, nested.unit_names("plane"), 0.9, 0)
    for one in (None, stored):
        choice = choose(nested, 0.9, core_first=1, core_last=2, stored=one)
        assert texts(choice)[:2] == [
            "depth: core_first has no effect: core layers lose low planes too",
            "depth: core_last has no effect: core layers lose low planes too",
        ]
        assert len(choice.schedule.units) == 8


def test_options_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ScheduleError):
        choose(equal_layers(4), 0.9, core_first=5)


def test_every_source_has_words_and_its_json_name() -> None:
    names = "off flags prompt calibration shipped default"
    assert [str(source) for source in Source] == names.split()
    assert all(source.in_words for source in Source)
