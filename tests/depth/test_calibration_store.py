"""Calibrations on disk: found, stale, replaced atomically, written by two processes."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from d3cli.base.errors import StoreError
from d3cli.base.settings import state_dir
from d3cli.depth import calibration_store
from d3cli.depth.calibration_file import file_of
from d3cli.depth.calibration_record import Calibration, Entry, ModelKey
from d3cli.depth.calibration_store import (
    Stale,
    all_calibrations,
    calibrations_of,
    check_writable,
    find,
)
from tests.records import FOUND, KEY, SCHEDULE, UNSEEN


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

    def test_models_with_similar_names_have_separate_files(self) -> None:
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

    def test_an_unreadable_calibration_is_not_stored(self) -> None:
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
            ({"quantization": "bnb-4bit"}, "now runs in bfloat16 with bnb-4bit weights"),
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
        assert "made in bfloat16 and bfloat16 with bnb-8bit weights," in found.reason


def run_saves(body: str) -> subprocess.Popen[str]:
    """Starts a process that prints "ready", then runs `body` with `KEY` and `FOUND`."""
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
            process.stdin.close()  # both are ready and start together
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
    # Long, so that writing takes a while.
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
        monkeypatch.setattr(
            calibration_store, "LOCK_SECONDS", 0
        )  # the system has released the lock
        calibration_store.save(KEY, FOUND)
        assert find(replace(KEY, dtype="float32")) == found
        assert {path.name for path in file_of(KEY.model).parent.iterdir()} == {
            ".lock",
            file_of(KEY.model).name,
        }

    def test_leftovers_of_a_killed_process_are_removed(self) -> None:
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


class TestCannotBeWritten:
    @pytest.mark.parametrize("blocked", ["", "calibrations"])
    def test_a_state_directory_that_cannot_be_made(
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

    def test_a_check_leaves_no_file(self) -> None:
        check_writable(KEY)
        assert [path.name for path in (state_dir() / "calibrations").iterdir()] == [".lock"]


def test_a_file_that_0_1_0_wrote_is_read_whole() -> None:
    """Calibrations survive an update of d3."""
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
