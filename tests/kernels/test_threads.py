"""The number of threads: the cores that limits leave, or fewer if that is faster."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from d3cli.kernels import threads
from d3cli.kernels.threads import (
    LOOK_S,
    fastest,
    machine_is_busy,
    pick_threads,
    usable_cores,
)
from tests.conftest import D3


@pytest.fixture(autouse=True)
def _simulated_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A quiet machine of eight cores with two hyperthreads each, and no limits."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.1, 0.1, 0.1))
    others_use(monkeypatch, 0)
    monkeypatch.setattr("d3cli.base.cgroups.OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("d3cli.base.cgroups.GROUPS", tmp_path / "fs")
    yield
    torch.set_num_threads(before)


def others_use(monkeypatch: pytest.MonkeyPatch, processors: float) -> None:
    """Has other programs use some of the logical processors, the first ones, now."""
    shares = [100 * min(1, max(0, processors - number)) for number in range(16)]
    monkeypatch.setattr(psutil, "cpu_percent", lambda _seconds, percpu: shares)


def test_physical_cores() -> None:
    assert usable_cores() == 8
    assert pick_threads() == (8, "")


def test_an_affinity_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6})
    assert usable_cores() == 3


@pytest.mark.parametrize(
    ("granted", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("?", 8)]
)
def test_the_limit_of_a_container_counts(tmp_path: Path, granted: str, cores: int) -> None:
    (tmp_path / "cgroup").write_text("0::/pod/app\n")
    (tmp_path / "fs/pod/app").mkdir(parents=True)
    (tmp_path / "fs/pod/cpu.max").write_text(f"{granted}\n")
    assert usable_cores() == cores


@pytest.mark.parametrize(("granted", "cores"), [("300000", 3), ("-1", 8)])
def test_the_older_form_of_a_limit_counts(tmp_path: Path, granted: str, cores: int) -> None:
    (tmp_path / "cgroup").write_text("3:cpu,cpuacct:/pod\n2:memory:/pod\n")
    (tmp_path / "fs/cpu/pod").mkdir(parents=True)
    (tmp_path / "fs/cpu/pod/cpu.cfs_quota_us").write_text(f"{granted}\n")
    (tmp_path / "fs/cpu/pod/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores() == cores


def test_the_environment_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert pick_threads() == (torch.get_num_threads(), "")


def test_only_a_busy_machine_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    probed = []
    monkeypatch.setattr(threads, "fastest", lambda counts: probed.append(counts) or 4)
    assert pick_threads() == (8, "")
    monkeypatch.setattr(psutil, "getloadavg", lambda: (3.0, 0.1, 0.1))
    assert pick_threads() == (8, "")  # the load average lingers, but nothing runs now
    assert probed == []
    others_use(monkeypatch, 3)
    assert pick_threads() == (4, "this machine is busy: d3 uses 4 of 8 cores")
    assert probed == [[4, 7, 8]]


@pytest.mark.parametrize(("used", "busy"), [(0, False), (0.4, False), (1, True), (9, True)])
def test_what_runs_now_makes_a_machine_busy(
    monkeypatch: pytest.MonkeyPatch, used: float, busy: bool
) -> None:
    others_use(monkeypatch, used)
    assert machine_is_busy() == busy


def test_what_this_process_uses_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([3.0, 3.0 + 0.8 * LOOK_S, 3.0, 3.0 + 0.2 * LOOK_S])
    monkeypatch.setattr("d3cli.kernels.threads.time.process_time", lambda: next(clock))
    others_use(monkeypatch, 1)
    assert not machine_is_busy()
    assert machine_is_busy()


def test_other_programs_on_other_processors_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others_use(monkeypatch, 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4})
    assert not machine_is_busy()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    assert machine_is_busy()


def test_a_container_with_fewer_cores_than_are_free_is_not_busy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text("0::/app\n")
    (tmp_path / "fs/app").mkdir(parents=True)
    (tmp_path / "fs/app/cpu.max").write_text("200000 100000\n")
    others_use(monkeypatch, 5)
    assert not machine_is_busy()
    others_use(monkeypatch, 7)
    assert machine_is_busy()


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({4: 1.0, 7: 0.5, 8: 0.7}, 7),
        ({4: 1.0, 7: 0.9, 8: 0.8}, 4),
        ({4: 1.0, 7: 0.8, 8: 0.7}, 8),
        ({4: 1.0, 7: 2.0, 8: 2.0}, 4),
    ],
)
def test_more_threads_only_if_they_are_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, times: dict[int, float], chosen: int
) -> None:
    """With a clock that advances by a time set for each number of threads."""
    now, running = [0.0], [8]
    monkeypatch.setattr(torch, "set_num_threads", lambda count: running.__setitem__(0, count))

    def clock() -> float:
        now[0] += times[running[0]] / 2
        return now[0]

    monkeypatch.setattr("d3cli.kernels.threads.time.perf_counter", clock)
    assert fastest([4, 7, 8]) == chosen
    assert running == [chosen]


def test_the_command_says_so(d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "getloadavg", lambda: (3.0, 0.1, 0.1))
    others_use(monkeypatch, 3)
    monkeypatch.setattr(threads, "fastest", lambda _: 1)
    arguments = ["generate", "Hello.", "--max-tokens", "2", "--device", "cpu"]
    busy = d3(*arguments)
    assert busy.code == 0
    assert "this machine is busy: d3 uses 1 of 8 cores; --threads overrides" in busy.err
    assert "busy" not in d3(*arguments, "--threads", "1").err
