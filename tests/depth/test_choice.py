"""The choice of a schedule, its source and its notes, without any model."""

import pytest

from d3cli.base.errors import ScheduleError, spelled
from d3cli.depth.calibration_store import Stale
from d3cli.depth.choice import Choice, Source, choose
from d3cli.depth.schedule import DepthSchedule
from tests.records import FOUND

STORED = DepthSchedule(16, 0.98, 8, 2, 2, ("9", "7", "5"))


def texts(choice: Choice) -> list[str]:
    return [spelled(note) for note in choice.notes]


def test_off_is_full_depth_whatever_is_stored() -> None:
    choice = choose(16, "off", stored=STORED, calibration=FOUND)
    assert choice == Choice(DepthSchedule.full(16), Source.OFF)


def test_a_calibration_runs_and_reports_its_cost() -> None:
    choice = choose(16, stored=FOUND.schedule, calibration=FOUND)
    assert (choice.schedule, choice.source) == (FOUND.schedule, Source.CALIBRATION)
    (note,) = texts(choice)
    assert note.startswith("depth: calibrated: +0.80% perplexity (1% was allowed), alpha 0.98")


def test_a_shipped_schedule_runs_without_a_note() -> None:
    assert choose(16, stored=STORED, builtin=True) == Choice(STORED, Source.SHIPPED)


@pytest.mark.parametrize("stored", [None, STORED])
def test_a_stale_calibration_says_why_it_is_not_used(stored: DepthSchedule | None) -> None:
    choice = choose(
        16, stored=stored, calibration=Stale("the weights changed"), builtin=stored is not None
    )
    assert choice.source == (Source.SHIPPED if stored else Source.DEFAULT)
    notes = texts(choice)
    assert "is not used: the weights changed" in notes[0]
    assert notes[0].endswith("; run: d3 calibrate")
    assert ("ships with the model is used instead" in notes[0]) == (stored is not None)
    assert not any("not calibrated" in note for note in notes)


def test_a_remedy_replaces_the_advice_to_calibrate_again() -> None:
    (note, _) = texts(choose(16, calibration=Stale("it is damaged", "move it away")))
    assert note.endswith("it is damaged; move it away")


def test_the_default_names_the_command_that_finds_better() -> None:
    choice = choose(16, calibrate_with="d3 calibrate fox")
    assert choice.source == Source.DEFAULT
    (note,) = texts(choice)
    assert "not calibrated, so a cautious default: alpha 0.999 from token 32" in note
    assert note.endswith('(d3 calibrate fox finds better; alpha="off" for full depth)')
    (note,) = texts(choose(2))
    assert note.endswith("all 2 layers (d3 calibrate finds better; alpha=0.99 drops some)")


def test_any_depth_option_overrides_its_field() -> None:
    choice = choose(16, 0.9, stored=STORED, calibration=FOUND)
    assert (choice.schedule.alpha, choice.schedule.start) == (0.9, 8)
    assert (choice.source, choice.notes) == (Source.FLAGS, ())
    assert choose(16, start=3, stored=STORED).source == Source.FLAGS
    assert choose(16, core_last=3, stored=STORED).source == Source.FLAGS


def test_options_without_effect_are_reported() -> None:
    assert texts(choose(16, 0.9, core_first=1, stored=STORED)) == [
        "depth: lowering core_first or core_last has no effect: the stored order never skips those "
        "layers"
    ]
    (note,) = texts(choose(4, 0.9, core_first=4, core_last=0))
    assert note == "depth: every layer is a core layer, so no layer is dropped"


def test_options_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ScheduleError):
        choose(4, 0.9, core_first=5)


def test_every_source_has_words_and_its_json_name() -> None:
    names = "off flags calibration shipped default"
    assert [str(source) for source in Source] == names.split()
    assert all(source.in_words for source in Source)
