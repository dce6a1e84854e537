"""What drafts lossless replies, in the store and in the choice of a schedule."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from d3cli.base.errors import StoreError, spelled
from d3cli.cli.calibrate.stored import as_json, describe, summary
from d3cli.depth.calibration_file import file_of
from d3cli.depth.calibration_store import (
    Stale,
    calibrations_of,
    find,
    find_choice,
    find_drafts,
    is_calibrated,
    remove,
    save,
    save_drafts,
)
from d3cli.depth.choice import Choice, Source
from d3cli.depth.draft_choice import choose_for_drafts
from d3cli.depth.draft_record import DraftEntry
from d3cli.depth.schedule import DepthSchedule
from tests.depth.layers import equal_layers
from tests.records import DRAFTS, FOUND, KEY

MODEL = equal_layers(16)
NO_GAIN = replace(DRAFTS, length=0, gain=1.0, gain_low=1.0)


def schema(path: Path) -> int:
    return int(json.loads(path.read_text())["schema"])


def test_drafts_stand_beside_calibrations_and_keep_them() -> None:
    assert schema(save(KEY, FOUND)) == 1
    assert schema(save_drafts(KEY, DRAFTS)) == 4
    other = replace(KEY, quantization="int4")
    path = save_drafts(other, NO_GAIN)
    save(other, FOUND, chosen=True)
    assert schema(path) == 4
    assert find(KEY) == find(other) == FOUND
    assert find_drafts(KEY) == DRAFTS
    assert find_drafts(other) == NO_GAIN
    assert find_drafts(replace(KEY, dtype="float32")) is None
    assert remove(KEY.model)
    assert find_drafts(KEY) is None


def test_a_model_with_drafts_alone_is_not_calibrated() -> None:
    save_drafts(KEY, DRAFTS)
    assert find(KEY) is None
    assert not is_calibrated(KEY.model, KEY.revision, lambda: KEY.fingerprint)
    assert find_choice(KEY.model, KEY.revision, lambda: KEY.fingerprint) is None
    assert find_drafts(KEY) == DRAFTS


def test_drafts_of_a_model_that_changed_are_stale() -> None:
    save_drafts(KEY, DRAFTS)
    assert isinstance(find_drafts(replace(KEY, fingerprint="2" * 64)), Stale)
    assert isinstance(find_drafts(replace(KEY, revision=None)), Stale)


def test_drafts_of_a_model_on_disk_move_with_it() -> None:
    there = replace(KEY, model="/models/there", revision=None)
    save_drafts(there, DRAFTS)
    assert find_drafts(replace(there, model="/models/here")) == DRAFTS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agreement", 1.5),
        ("agreement_low", 0.99),
        ("gain", 0.5),
        ("length", -1),
        ("date", "2026-01-02"),
        ("schedule", {}),
        ("surprise", 1),
    ],
)
def test_damaged_drafts_are_refused(field: str, value: object) -> None:
    path = save_drafts(KEY, DRAFTS)
    data = json.loads(path.read_text())
    data["drafts"][0][field] = value
    path.write_text(json.dumps(data))
    with pytest.raises(StoreError, match="is damaged"):
        find_drafts(KEY)
    with pytest.raises(StoreError, match="is damaged"):
        save(KEY, FOUND)


def test_two_drafts_for_one_form_are_refused() -> None:
    path = save_drafts(KEY, DRAFTS)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"drafts": data["drafts"] * 2}))
    with pytest.raises(StoreError, match="two calibrations"):
        calibrations_of(KEY.model)


def test_stored_drafts_are_shown() -> None:
    save(KEY, FOUND)
    save_drafts(KEY, DRAFTS)
    stored = calibrations_of(KEY.model)
    assert stored is not None
    assert stored.path == file_of(KEY.model)
    assert [each["for"] for each in as_json(stored)] == ["perplexity", "lossless"]
    assert "drafts 1.60×" in summary(stored)
    rows = dict(describe(DraftEntry(KEY, DRAFTS)))
    assert rows["for"] == "drafts of lossless replies"
    assert rows["agreement"].startswith("90.0% of 1,000 tokens in 24 unseen replies")
    assert rows["expected gain"] == "1.60× the speed of full depth, at least 1.50×"
    assert "do not pay" in dict(describe(DraftEntry(KEY, NO_GAIN)))["for"]


def test_stored_drafts_are_used() -> None:
    for source in ("auto", "depth"):
        choice = choose_for_drafts(MODEL, source, drafts=DRAFTS)
        assert (choice.schedule, choice.source) == (DRAFTS.schedule, Source.CALIBRATION)
        (note,) = choice.notes
        assert spelled(note).startswith("lossless mode: drafts as calibrated: constant from token")


def test_drafts_that_do_not_pay_are_left_out_unless_asked_for() -> None:
    full = Choice(DepthSchedule.full(16), Source.CALIBRATION)
    assert choose_for_drafts(MODEL, "auto", drafts=NO_GAIN) == full
    choice = choose_for_drafts(MODEL, "depth", drafts=NO_GAIN)
    assert choice.schedule == NO_GAIN.schedule
    assert "did not pay" in spelled(choice.notes[0])


def test_an_explicit_alpha_comes_before_stored_drafts() -> None:
    choice = choose_for_drafts(MODEL, "depth", 0.5, drafts=DRAFTS)
    assert choice.schedule.units != DRAFTS.schedule.units
    assert choose_for_drafts(MODEL, "depth", "off", drafts=DRAFTS).source is Source.OFF
    assert choose_for_drafts(MODEL, "lookup", drafts=DRAFTS).source is Source.DEFAULT


def test_shipped_drafts_are_used_without_a_note() -> None:
    shipped = DRAFTS.schedule
    assert choose_for_drafts(MODEL, "auto", drafts=shipped) == Choice(shipped, Source.SHIPPED)
