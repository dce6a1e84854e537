"""Damaged calibrations are reported and left alone."""

import json
import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.errors import StoreError
from d3cli.cli.calibrate.stored import as_json, describe, summary
from d3cli.depth import calibration_store
from d3cli.depth.calibration_file import file_of
from d3cli.depth.calibration_record import Entry
from d3cli.depth.calibration_store import all_calibrations, calibrations_of, check_writable, find
from tests.records import FOUND, KEY


def valid() -> dict[str, Any]:
    """The content of a valid file."""
    return {
        "schema": 1,
        "model": KEY.model,
        "entries": [Entry(KEY, FOUND).to_json(), Entry(replace(KEY, dtype="x"), FOUND).to_json()],
    }


def write(text: str | bytes) -> Path:
    path = file_of(KEY.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def assert_left_alone(path: Path, problem: str) -> None:
    """No function reads or replaces the file; each reports the problem."""
    before = path.read_bytes()
    for refused in (
        lambda: find(KEY),
        lambda: calibration_store.save(KEY, FOUND),
        lambda: check_writable(KEY),
        lambda: calibrations_of(KEY.model),
    ):
        with pytest.raises(StoreError, match=problem) as error:
            refused()
        assert str(path) in error.value.message
        assert "d3 calibrate remove someone/fox" in error.value.hint
        assert error.value.exit_code == 1
    assert path.read_bytes() == before
    (stored,) = all_calibrations()
    assert stored.path == path
    assert not stored.entries
    assert problem in stored.problem


def set_in(data: Any, way: list[Any], value: object) -> Any:
    changed = deepcopy(data)
    place = changed
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = value
    return changed


def places(data: Any, way: tuple[Any, ...] = ()) -> list[list[Any]]:
    """The path to every value in a JSON document."""
    items: list[tuple[Any, Any]] = []
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    found = [[*way, step] for step, _ in items]
    for step, value in items:
        found += places(value, (*way, step))
    return found


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["9", "9.attn", "nan", 10**30, 10**400, "2026-01-02T03:04:05+00:00"]),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


class TestDamaged:
    @pytest.mark.parametrize(
        ("way", "value"),
        [
            (["schema"], "1"),
            (["schema"], True),
            (["schema"], 0),
            (["model"], None),
            (["model"], "someone/else"),
            (["entries"], {}),
            (["entries"], []),
            (["entries", 0], 3),
            (["entries", 0, "fingerprint"], "short"),
            (["entries", 0, "revision"], 7),
            (["entries", 0, "dtype"], "x"),  # the same as the second entry's
            (["entries", 0, "schedule"], []),
            (["entries", 0, "schedule", "alpha"], 1.5),
            (["entries", 0, "schedule", "alpha"], "0.98"),
            (["entries", 0, "schedule", "num_layers"], 10**12),
            (["entries", 0, "schedule", "skip_order"], "975"),
            (["entries", 0, "schedule", "unknown"], 1),
            (["entries", 0, "target_drop"], -1),
            (["entries", 0, "target_drop"], 10**400),
            (["entries", 0, "confidence"], 1),
            (["entries", 0, "unseen"], None),
            (["entries", 0, "unseen", "drop"], float("nan")),
            (["entries", 0, "unseen", "drop"], "0.01"),
            (["entries", 0, "unseen", "drop_interval"], [0.1]),
            (["entries", 0, "unseen", "drop_interval"], [0.2, 0.1]),
            (["entries", 0, "unseen", "documents"], 0),
            (["entries", 0, "unseen", "byte_ratio"], 0),
            (["entries", 0, "settings"], []),
            (["entries", 0, "settings", "nested"], {}),
            (["entries", 0, "date"], "yesterday"),
            (["entries", 0, "unknown"], 1),
            (["unknown"], 1),
        ],
        ids=str,
    )
    def test_an_invalid_field_is_reported(self, way: list[Any], value: object) -> None:
        path = write(json.dumps(set_in(valid(), way, value)))
        assert_left_alone(path, "is damaged")

    def test_every_field_is_required(self) -> None:
        whole = valid()
        for way in places(whole):
            if "settings" in way[:-1] or isinstance(way[-1], int):
                continue
            changed = deepcopy(whole)
            place: Any = changed
            for step in way[:-1]:
                place = place[step]
            del place[way[-1]]
            write(json.dumps(changed))
            with pytest.raises(StoreError, match="is damaged"):
                find(KEY)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"null",
            b"[1]",
            b"\xff\xfe\xff",
            b'{"schema": 1e999}',
            b'{"schema": NaN}',
            b"[" * 100_000,
            b'{"schema": 1, "a": ' + b"[" * 100_000,
            b'{"schema": ' + b"9" * 5000 + b"}",
        ],
        ids=lambda text: str(text[:20]),
    )
    def test_other_content_is_reported(self, text: bytes) -> None:
        assert_left_alone(write(text), "is damaged")

    def test_a_file_that_is_too_large_is_reported(self) -> None:
        assert_left_alone(write(b" " * (2 << 20)), "is larger than 1 MiB")

    @given(st.data())
    def test_a_file_that_was_cut_off_is_damaged(self, data: st.DataObject) -> None:
        text = json.dumps(valid())
        write(text[: data.draw(st.integers(0, len(text) - 1))])
        with pytest.raises(StoreError, match="is damaged"):
            find(KEY)

    @given(st.sampled_from(places(valid())), JSON)
    def test_a_changed_value_is_either_valid_or_damaged(self, way: list[Any], value: Any) -> None:
        write(json.dumps(set_in(valid(), way, value)))
        (stored,) = all_calibrations()
        assert bool(stored.problem) != bool(stored.model)
        json.dumps(as_json(stored), allow_nan=False)
        assert summary(stored)
        for entry in stored.entries:
            assert dict(describe(entry))["model"] == stored.model
            assert find(entry.key) == entry.calibration
            assert Entry.from_json(KEY.model, entry.to_json()) == entry

    def test_a_pipe_is_reported_without_waiting(self) -> None:
        path = file_of(KEY.model)
        path.parent.mkdir()
        os.mkfifo(path)
        with pytest.raises(StoreError, match="is not a regular file"):
            find(KEY)
        assert all_calibrations()[0].problem

    def test_a_newer_schema_is_reported_as_newer(self) -> None:
        path = write(json.dumps({"schema": 5, "model": KEY.model, "surprise": [1]}))
        assert_left_alone(path, "was written by a newer d3")

    def test_a_damaged_file_hides_no_other(self) -> None:
        write("{")
        other = replace(KEY, model="someone/else")
        calibration_store.save(other, FOUND)
        stored = all_calibrations()
        assert [file.model for file in stored] == [None, "someone/else"]
        assert [bool(file.problem) for file in stored] == [True, False]

    def test_a_damaged_file_can_be_removed(self) -> None:
        path = write("{")
        assert calibration_store.remove(KEY.model)
        assert not path.exists()
        calibration_store.save(KEY, FOUND)
        assert find(KEY) == FOUND
