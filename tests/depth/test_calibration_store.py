"""Calibrations on disk: found again, stale, damaged, written at once, cut off in the middle."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from d3cli.base.errors import ModelError, StoreError
from d3cli.base.settings import BUILTIN, state_dir
from d3cli.cli.calibrate.stored import as_json, describe, summary
from d3cli.depth import calibration_store
from d3cli.depth.calibration_record import Calibration, Entry, ModelKey
from d3cli.depth.calibration_store import (
    Stale,
    all_calibrations,
    calibrations_of,
    check_writable,
    file_of,
    find,
)
from d3cli.depth.schedule import DepthSchedule
from d3cli.files.fingerprint import fingerprint
from d3cli.files.names import find_model, find_on_disk, model_identity
from d3cli.model.load import load_model
from tests.conftest import BUILTIN_PATH, D3, hub_repository
from tests.records import FOUND, KEY, SCHEDULE, UNSEEN

TAIL = ("--max-tokens", "2", "--dtype", "float32")


def key_of(name: str | Path, dtype: str = "float32", quantization: str | None = None) -> ModelKey:
    """The key of a model on disk, as loading it makes one."""
    files = find_on_disk(str(name))
    assert files is not None
    return ModelKey(files.identity, fingerprint(files.path), files.revision, dtype, quantization)


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    """A directory with a model of a stranger, which brings no schedule."""
    directory = tmp_path / "fox"
    directory.mkdir()
    for file in BUILTIN_PATH.iterdir():
        if file.is_file():
            (directory / file.name).write_bytes(file.read_bytes())
    return directory


class TestSavedAndFound:
    def test_what_is_saved_is_found(self) -> None:
        assert find(KEY) is None
        path = calibration_store.save(KEY, FOUND)
        assert path.parent == state_dir() / "calibrations"
        assert "someone-fox" in path.name
        assert find(KEY) == FOUND
        data = json.loads(path.read_text())
        assert (data["schema"], data["model"]) == (1, "someone/fox")
        assert data["entries"][0]["schedule"] == SCHEDULE.to_json()

    def test_a_second_one_replaces_the_first(self) -> None:
        calibration_store.save(KEY, FOUND)
        better = replace(FOUND, target_drop=0.02)
        calibration_store.save(KEY, better)
        assert find(KEY) == better
        (stored,) = all_calibrations()
        assert stored.entries == (Entry(KEY, better),)

    def test_dtypes_and_quantizations_stand_side_by_side(self) -> None:
        kinds = [("bfloat16", None), ("float32", None), ("bfloat16", "bnb-4bit")]
        for number, (dtype, quantization) in enumerate(kinds, start=1):
            key = replace(KEY, dtype=dtype, quantization=quantization)
            calibration_store.save(key, replace(FOUND, target_drop=number / 100))
        for number, (dtype, quantization) in enumerate(kinds, start=1):
            found = find(replace(KEY, dtype=dtype, quantization=quantization))
            assert isinstance(found, Calibration)
            assert found.target_drop == number / 100
        assert len(list((state_dir() / "calibrations").glob("*.json"))) == 1

    def test_models_of_like_names_have_files_of_their_own(self) -> None:
        names = ["a/b", "a-b", "A/b", "a/B", "/a/b", "demo", "x" * 5000, "名前/モデル"]
        assert len({file_of(name).name for name in (*names, "a\udcff")}) == len(names) + 1
        for name in names:
            calibration_store.save(replace(KEY, model=name), FOUND)
            assert find(replace(KEY, model=name)) == FOUND

    def test_only_the_owner_may_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("D3_HOME")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "local" / "state"))
        previous = os.umask(0)
        try:
            path = calibration_store.save(KEY, FOUND)
        finally:
            os.umask(previous)
        assert path.parent == tmp_path / "local" / "state" / "d3" / "calibrations"
        assert [stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()] == [0o600] * 2
        directories = path.relative_to(tmp_path).parents
        modes = [stat.S_IMODE((tmp_path / d).stat().st_mode) for d in list(directories)[:-1]]
        assert modes == [0o700] * 4

    def test_removing_takes_all_of_a_model_and_nothing_else(self) -> None:
        other = replace(KEY, model="someone/else")
        calibration_store.save(KEY, FOUND)
        calibration_store.save(replace(KEY, dtype="float32"), FOUND)
        calibration_store.save(other, FOUND)
        assert calibration_store.remove("someone/fox")
        assert not calibration_store.remove("someone/fox")
        assert find(KEY) is None
        assert find(other) == FOUND

    def test_what_cannot_be_read_again_is_not_stored(self) -> None:
        path = calibration_store.save(KEY, FOUND)
        before = path.read_bytes()
        wrong: list[tuple[ModelKey, Calibration]] = [
            (KEY, replace(FOUND, target_drop=float("nan"))),
            (KEY, replace(FOUND, target_drop=-1.0)),
            (KEY, replace(FOUND, settings={"order": ["9", "7"]})),
            (KEY, replace(FOUND, unseen=replace(UNSEEN, same_top=1.5))),
            (replace(KEY, fingerprint=""), FOUND),
        ]
        for key, calibration in wrong:
            with pytest.raises(StoreError, match="cannot be stored: "):
                calibration_store.save(key, calibration)
        assert path.read_bytes() == before
        for date in ("today", "2026-01-02"):
            with pytest.raises(ValueError, match=r"isoformat|offset"):
                replace(FOUND, date=date)
        with pytest.raises(ValueError, match="drop_interval"):
            replace(UNSEEN, drop_interval=(0.2, 0.1))

    def test_neither_reading_nor_writing_imports_torch(self) -> None:
        code = (
            "import sys, d3cli.depth.calibration_store, d3cli.cli.calibrate.stored; "
            "sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class TestStale:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"fingerprint": "f" * 64}, "weights or config changed since it was made, on 2026-01"),
            (
                {"revision": "2" * 40},
                f"for revision {'1' * 12}, and the model is now at {'2' * 12}",
            ),
            ({"dtype": "float32"}, "made in bfloat16, and the model now runs in float32"),
            ({"quantization": "bnb-4bit"}, "now runs in bfloat16 bnb-4bit"),
        ],
    )
    def test_each_reason_is_named(self, change: dict[str, Any], reason: str) -> None:
        calibration_store.save(KEY, FOUND)
        found = find(replace(KEY, **change))
        assert isinstance(found, Stale)
        assert reason in found.reason

    def test_all_forms_that_are_there_are_named(self) -> None:
        calibration_store.save(KEY, FOUND)
        calibration_store.save(replace(KEY, quantization="bnb-8bit"), FOUND)
        found = find(replace(KEY, dtype="float16"))
        assert isinstance(found, Stale)
        assert "made in bfloat16 and bfloat16 bnb-8bit," in found.reason


def run_saves(body: str) -> subprocess.Popen[str]:
    """A process that has `KEY` and `FOUND`, says so, and runs `body`."""
    code = f"""
import itertools, sys
from dataclasses import replace
from d3cli.depth import calibration_store
from tests.records import FOUND, KEY
print("ready", flush=True)
{body}"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


class TestAtOnce:
    def test_two_processes_keep_each_others_calibrations(self) -> None:
        body = """
own = replace(KEY, dtype={dtype!r})
sys.stdin.readline()
for number in range(60):
    made = replace(FOUND, settings={{"number": number}})
    calibration_store.save(own, made)
    assert calibration_store.find(own) == made, number
"""
        started = [run_saves(body.format(dtype=dtype)) for dtype in ("float32", "float16")]
        for process in started:
            assert process.stdin is not None
            process.stdin.close()  # both are ready: now at once
        for process in started:
            assert process.wait(timeout=120) == 0
        for dtype in ("float32", "float16"):
            found = find(replace(KEY, dtype=dtype))
            assert isinstance(found, Calibration)
            assert found.settings == {"number": 59}

    @pytest.mark.parametrize("seed", range(6))
    def test_a_kill_leaves_the_old_file_or_the_new_one(
        self, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Kills a process that does nothing but save, after a random moment."""
        process = run_saves("""
for number in itertools.count():
    # Long, so that writing takes its time.
    made = replace(FOUND, settings={f"s{i}": number for i in range(2000)})
    calibration_store.save(replace(KEY, dtype="float32"), made)
""")
        while find(replace(KEY, dtype="float32")) is None:
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        found = find(replace(KEY, dtype="float32"))
        assert isinstance(found, Calibration)
        assert len(found.settings) == 2000
        assert len(set(found.settings.values())) == 1
        monkeypatch.setattr(calibration_store, "LOCK_SECONDS", 0)  # its lock went with it
        calibration_store.save(KEY, FOUND)
        assert find(replace(KEY, dtype="float32")) == found
        assert {path.name for path in file_of(KEY.model).parent.iterdir()} == {
            ".lock",
            file_of(KEY.model).name,
        }

    def test_what_a_killed_process_left_is_cleared_away(self) -> None:
        path = calibration_store.save(KEY, FOUND)
        left = path.parent / f".{path.name}.abc123"
        left.write_text('{"schema":')
        (path.parent / ".lock").write_text("4711")
        calibration_store.save(KEY, replace(FOUND, target_drop=0.02))
        assert not left.exists()

    def test_a_lock_that_is_held_too_long_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = calibration_store.save(KEY, FOUND)
        monkeypatch.setattr(calibration_store, "LOCK_SECONDS", 0.1)
        with FileLock(path.parent / ".lock"):
            assert find(KEY) == FOUND  # a reader does not wait
            with pytest.raises(StoreError, match="another d3 has been writing"):
                calibration_store.save(KEY, replace(FOUND, target_drop=0.02))
        assert find(KEY) == FOUND


def valid() -> dict[str, Any]:
    """The object that a file holds."""
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
    """Nothing reads or replaces the file, and the error says so."""
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
    """The way to every value in a JSON document."""
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
            (["entries", 0, "dtype"], "x"),  # twice the same
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
    def test_a_field_that_cannot_be_is_reported(self, way: list[Any], value: object) -> None:
        path = write(json.dumps(set_in(valid(), way, value)))
        assert_left_alone(path, "is damaged")

    def test_each_field_is_needed(self) -> None:
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
    def test_what_is_no_such_object_is_reported(self, text: bytes) -> None:
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

    def test_something_else_than_a_file_is_damaged(self) -> None:
        path = file_of(KEY.model)
        path.parent.mkdir()
        os.mkfifo(path)
        with pytest.raises(StoreError, match="is not a regular file"):
            find(KEY)
        assert all_calibrations()[0].problem

    def test_a_newer_schema_is_reported_as_newer(self) -> None:
        path = write(json.dumps({"schema": 2, "model": KEY.model, "surprise": [1]}))
        assert_left_alone(path, "was written by a newer d3")

    def test_one_that_is_damaged_hides_no_other(self) -> None:
        write("{")
        other = replace(KEY, model="someone/else")
        calibration_store.save(other, FOUND)
        stored = all_calibrations()
        assert [file.model for file in stored] == [None, "someone/else"]
        assert [bool(file.problem) for file in stored] == [True, False]

    def test_removing_takes_a_damaged_one_too(self) -> None:
        path = write("{")
        assert calibration_store.remove(KEY.model)
        assert not path.exists()
        calibration_store.save(KEY, FOUND)
        assert find(KEY) == FOUND


class TestCannotBeWritten:
    @pytest.mark.parametrize("blocked", ["", "calibrations"])
    def test_a_state_directory_that_cannot_be(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blocked: str
    ) -> None:
        (tmp_path / "home" / blocked).parent.mkdir(exist_ok=True)
        (tmp_path / "home" / blocked).write_text("a file")
        monkeypatch.setenv("D3_HOME", str(tmp_path / "home"))
        for write_ in (lambda: check_writable(KEY), lambda: calibration_store.save(KEY, FOUND)):
            with pytest.raises(StoreError, match="cannot be written to") as error:
                write_()
            assert "D3_HOME" in error.value.hint
        assert find(KEY) is None
        assert all_calibrations() == []
        assert not calibration_store.remove(KEY.model)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_directory(self) -> None:
        directory = calibration_store.save(KEY, FOUND).parent
        directory.chmod(0o500)
        try:
            with pytest.raises(StoreError, match="Permission denied"):
                check_writable(KEY)
            with pytest.raises(StoreError, match="Permission denied"):
                calibration_store.save(KEY, replace(FOUND, target_drop=0.02))
            assert find(KEY) == FOUND
        finally:
            directory.chmod(0o700)

    def test_trying_leaves_nothing_behind(self) -> None:
        check_writable(KEY)
        assert [path.name for path in (state_dir() / "calibrations").iterdir()] == [".lock"]


class TestFingerprint:
    def change_a_tensor(self, model: Path, change: Callable[[Any], Any]) -> None:
        tensors = load_file(model / "model.safetensors")
        name = "model.layers.3.mlp.up_proj.weight"
        tensors[name] = change(tensors[name]).contiguous()
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    def test_a_copy_has_the_same(self, fox: Path) -> None:
        assert fingerprint(fox) == fingerprint(BUILTIN_PATH)

    @pytest.mark.parametrize(
        "change",
        [lambda t: t * 1.01, lambda t: t.half(), lambda t: t.reshape(t.shape[::-1])],
        ids=["values", "dtype", "shape"],
    )
    def test_another_tensor_changes_it(self, fox: Path, change: Callable[[Any], Any]) -> None:
        before = fingerprint(fox)
        self.change_a_tensor(fox, change)
        assert fingerprint(fox) != before

    def test_another_name_changes_it(self, fox: Path) -> None:
        before = fingerprint(fox)
        data = (fox / "model.safetensors").read_bytes()
        (fox / "model.safetensors").write_bytes(data.replace(b"layers.3.mlp", b"layers.3.mlq"))
        assert fingerprint(fox) != before

    def test_another_config_changes_it_but_no_other_file(self, fox: Path) -> None:
        before = fingerprint(fox)
        (fox / "generation_config.json").write_text("{}")
        (fox / "tokenizer_config.json").write_text("{}")
        assert fingerprint(fox) == before
        (fox / "config.json").write_text((fox / "config.json").read_text() + " ")
        assert fingerprint(fox) != before

    def test_how_tensors_are_spread_over_files_does_not_matter(self, fox: Path) -> None:
        before = fingerprint(fox)
        tensors = load_file(fox / "model.safetensors")
        (fox / "model.safetensors").unlink()
        weight_map = {}
        for number in (0, 1):
            names = sorted(tensors)[number::2]
            save_file({n: tensors[n] for n in names}, fox / f"m{number}.safetensors")
            weight_map |= dict.fromkeys(names, f"m{number}.safetensors")
        index = {"metadata": {}, "weight_map": weight_map}
        (fox / "model.safetensors.index.json").write_text(json.dumps(index))
        assert fingerprint(fox) == before

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff" * 8,
            b"\xff" * 7 + b"\x00",
            (10).to_bytes(8, "little") + b"{}",
            (2).to_bytes(8, "little") + b"[]",
            *(
                len(header).to_bytes(8, "little") + header
                for header in (
                    b'{"a": 3}',
                    b'{"a": {"data_offsets": [0, 9], "dtype": "F32", "shape": [2]}}',
                    b'{"a": {"data_offsets": [-4, 0], "dtype": "F32", "shape": [1]}}',
                    b'{"a": {"data_offsets": [0], "dtype": "F32", "shape": [1]}}',
                    b'{"a": {"data_offsets": ["0", 0], "dtype": "F32", "shape": [1]}}',
                    b'{"a": {"data_offsets": [0, 0]}}',
                    b"[" * 50_000,
                )
            ),
        ],
        ids=lambda data: str(data[:60]),
    )
    def test_a_damaged_header_is_an_error(self, fox: Path, data: bytes) -> None:
        (fox / "model.safetensors").write_bytes(data)
        with pytest.raises(ModelError, match="cannot be read"):
            fingerprint(fox)


class TestIdentity:
    def test_an_alias_and_its_hub_id_share_a_calibration(self, d3: D3) -> None:
        (state_dir() / "config.toml").write_text('[aliases]\nfoxy = "someone/tiny-fox"\n')
        with hub_repository("someone/tiny-fox"):
            names = ("foxy", "someone/tiny-fox")
            keys = {key_of(name) for name in names}
            assert len(keys) == 1
            calibration_store.save(*keys, FOUND)
            for name in names:
                data = json.loads(d3("generate", name, "Hi.", "--json", *TAIL).out)
                assert data["schedule"]["source"] == "calibration"
        assert {model_identity(name) for name in names} == {"someone/tiny-fox"}

    def test_every_way_to_write_a_directory_is_the_same(
        self, fox: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(fox.parent)
        (fox.parent / "link").symlink_to(fox)
        (state_dir() / "config.toml").write_text(f'[aliases]\nfoxy = "{fox}/"\n')
        for name in ("fox", "./fox", "link", "../" + fox.parent.name + "/fox", "foxy"):
            assert find_model(name).identity == model_identity(name) == str(fox)
            assert find_model(name).revision is None

    def test_a_model_that_is_gone_still_has_one(self, tmp_path: Path) -> None:
        assert model_identity(str(tmp_path / "gone")) == str(tmp_path / "gone")
        assert model_identity("someone/gone") == "someone/gone"
        assert model_identity("llama-3-8b") == "meta-llama/Meta-Llama-3-8B-Instruct"
        assert model_identity(BUILTIN) == "demo"
        assert model_identity("") == ""

    def test_a_hub_models_revision_is_its_commit(self) -> None:
        with hub_repository("someone/tiny-fox"):
            assert find_model("someone/tiny-fox").revision == "0" * 40


class TestGenerate:
    def source(self, d3: D3, *arguments: str | Path) -> tuple[str, list[str]]:
        """Where the schedule came from, and the notes on it."""
        result = d3("generate", *arguments, "Hi.", "--json", *TAIL)
        assert result.code == 0, result.err
        notes = [line for line in result.err.splitlines() if line.startswith("depth: ")]
        return json.loads(result.out)["schedule"]["source"], notes

    def test_auto_uses_the_calibration_and_says_what_it_costs(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        result = d3("generate", fox, "Hi.", "--json", *TAIL)
        expected = SCHEDULE.to_json() | {"source": "calibration"}
        assert json.loads(result.out)["schedule"] == expected
        (note,) = [line for line in result.err.splitlines() if line.startswith("depth: ")]
        assert note == (
            "depth: calibrated: +0.80% perplexity (1% was allowed), alpha 0.98 from token 8, "
            "down to 13 of 16 layers"
        )

    def test_it_wins_over_the_schedule_that_ships_with_the_model(self, d3: D3) -> None:
        assert self.source(d3) == ("shipped", [])
        calibration_store.save(key_of(BUILTIN), FOUND)
        assert self.source(d3)[0] == "calibration"
        model = load_model(dtype="float32")
        assert model.origin.schedule == SCHEDULE
        assert model.origin.calibration == FOUND
        assert model.origin.builtin
        assert model.origin.key == key_of(BUILTIN)

    def test_flags_override_its_fields(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        result = d3("generate", fox, "Hi.", "--json", "--alpha", "0.9", *TAIL)
        schedule = json.loads(result.out)["schedule"]
        assert schedule == replace(SCHEDULE, alpha=0.9).to_json() | {"source": "flags"}

    def test_a_changed_weight_makes_it_stale(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        TestFingerprint().change_a_tensor(fox, lambda tensor: tensor * 1.01)
        source, (stale, default) = self.source(d3, fox)
        assert source == "default"
        assert "weights or config changed" in stale
        assert f"run: d3 calibrate {fox} --dtype float32" in stale
        assert "a cautious default" in default
        assert "not calibrated" not in default

    def test_a_changed_config_makes_it_stale(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        config = json.loads((fox / "config.json").read_text())
        (fox / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
        source, (stale, _) = self.source(d3, fox)
        assert (source, "weights or config changed" in stale) == ("default", True)

    def test_a_new_revision_makes_it_stale(self, d3: D3) -> None:
        with hub_repository("someone/tiny-fox") as snapshot:
            calibration_store.save(key_of("someone/tiny-fox"), FOUND)
            snapshot.rename(snapshot.with_name("2" * 40))
            (snapshot.parent.parent / "refs" / "main").write_text("2" * 40)
            source, (stale, _) = self.source(d3, "someone/tiny-fox")
        assert source == "default"
        assert "the model is now at 222222222222" in stale

    def test_another_dtype_has_none(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox, dtype="bfloat16"), FOUND)
        source, (stale, _) = self.source(d3, fox)
        assert source == "default"
        assert "made in bfloat16, and the model now runs in float32" in stale

    def test_one_that_does_not_fit_the_model_is_not_used(self, d3: D3, fox: Path) -> None:
        other = DepthSchedule(8, 0.98, 8, 2, 2, ("3", "4"))
        calibration_store.save(key_of(fox), replace(FOUND, schedule=other))
        source, (stale, _) = self.source(d3, fox)
        assert source == "default"
        assert "for 8 layers" in stale

    @pytest.mark.parametrize(
        ("text", "problem", "remedy"),
        [
            ("{", "is damaged", "move it away, or run: d3 calibrate remove demo"),
            ('{"schema": 2}', "was written by a newer d3", "update d3"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_a_note(
        self, d3: D3, text: str, problem: str, remedy: str
    ) -> None:
        path = calibration_store.save(key_of(BUILTIN), FOUND)
        path.write_text(text)
        source, (note,) = self.source(d3)
        assert source == "shipped"
        assert problem in note
        assert remedy in note
        assert path.read_text() == text

    def test_full_depth_has_no_use_for_one(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND).write_text("{")
        assert self.source(d3, "--alpha", "off", fox) == ("off", [])

    def test_without_one_the_command_that_makes_one_is_named(self, d3: D3, fox: Path) -> None:
        source, (note,) = self.source(d3, fox)
        assert source == "default"
        assert "not calibrated" in note
        assert f"d3 calibrate {fox} --dtype float32 finds better" in note


class TestModelsCommand:
    def row(self, d3: D3, name: str) -> list[str]:
        result = d3("models")
        assert result.code == 0, result.err
        (row,) = [line for line in result.out.splitlines() if name in line.split("\t")]
        return row.split("\t")

    def test_a_calibrated_model_shows_its_drop_and_ratio(self, d3: D3) -> None:
        assert self.row(d3, "demo")[4] == ""
        calibration_store.save(key_of(BUILTIN), FOUND)
        assert self.row(d3, "demo")[4] == "+0.80%, 1.21×, alpha 0.98 (float32)"
        with hub_repository("someone/tiny-fox"):
            calibration_store.save(key_of("someone/tiny-fox", quantization="bnb-4bit"), FOUND)
            assert self.row(d3, "someone/tiny-fox")[4].endswith("(float32 bnb-4bit)")

    def test_a_calibrated_directory_has_a_row(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        calibration_store.save(
            key_of(fox, dtype="bfloat16"), replace(FOUND, schedule=DepthSchedule(16))
        )
        expected = "+0.80%, 1.21×, alpha 0.98 (float32); +0.80%, 1.21×, alpha 1 (bfloat16)"
        assert self.row(d3, str(fox))[4] == expected
        (fox / "config.json").write_text("{}")
        assert self.row(d3, str(fox))[4].count("stale") == 2

    def test_json_holds_them_whole(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        (item,) = json.loads(d3("models", "--json").out)["calibrations"]
        assert item["model"] == str(fox)
        assert item["problem"] is None
        assert item["dtype"] == "float32"
        assert item.items() >= FOUND.to_json().items()
        (fox / "config.json").unlink()
        (item,) = json.loads(d3("models", "--json").out)["calibrations"]
        assert "config.json" in item["problem"]

    def test_a_damaged_file_stands_beside_its_model(self, d3: D3) -> None:
        calibration_store.save(key_of(BUILTIN), FOUND).write_text("{")
        calibration_store.save(KEY, FOUND).write_text("\x1b[31m")
        assert self.row(d3, "demo")[4] == "unusable"
        assert "is damaged" in self.row(d3, "demo")[5]
        assert "is damaged" in self.row(d3, file_of(KEY.model).name)[5]
        items = json.loads(d3("models", "--json").out)["calibrations"]
        assert all("is damaged" in item["problem"] for item in items)
        assert len(items) == 2

    def test_hostile_texts_in_a_file_stay_inert(self, d3: D3) -> None:
        calibration_store.save(replace(KEY, model="a\x1b[2J", dtype="\u202efp"), FOUND)
        result = d3("models")
        assert result.code == 0
        assert "\x1b" not in result.out
        assert "\u202e" not in result.out
        assert "a␛[2J" in result.out

    def test_a_state_directory_that_cannot_be_breaks_nothing(self, d3: D3) -> None:
        (state_dir() / "calibrations").write_text("a file")
        assert d3("models").code == 0
        assert json.loads(d3("models", "--json").out)["calibrations"] == []


def test_a_calibration_in_full_says_all_that_was_measured() -> None:
    rows = dict(describe(Entry(KEY, FOUND), "it is old"))
    assert rows["model"] == "someone/fox"
    assert rows["not used"] == "it is old"
    assert rows["skip order"] == "9 7 5"
    assert rows["measured"].startswith("+0.80% on 60 unseen documents; at least +0.30%")
    assert rows["units"] == "layers"


def test_a_file_that_0_1_0_wrote_is_read_whole() -> None:
    """So that calibrations survive an update of d3."""
    written = Path(__file__).parents[1] / "data" / "v0.1.0" / "calibration.json"
    path = file_of("demo")
    path.parent.mkdir(parents=True)
    path.write_bytes(written.read_bytes())
    stored = calibrations_of("demo")
    assert stored is not None
    (entry,) = stored.entries
    assert find(entry.key) == entry.calibration
    assert entry.calibration.schedule.skip_order == ("7", "9", "5", "10", "8", "11", "6")
    assert entry.to_json() == json.loads(written.read_bytes())["entries"][0]
