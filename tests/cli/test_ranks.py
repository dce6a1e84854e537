"""Commands under torchrun. Each test starts several processes, so there are few."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from d3cli.base.launch import LAUNCHED, NUMBERS
from tests.conftest import D3
from tests.conftest import check as check_error

WAIT = 180.0  # seconds; a busy machine imports torch slowly


def torchrun(
    *arguments: str | Path,
    ranks: int = 2,
    where: Sequence[str] = ("--standalone",),
    before: Sequence[str] = (),
) -> subprocess.Popen:
    return subprocess.Popen(
        [
            *(*before, sys.executable, "-m", "torch.distributed.run", *where),
            *("--nproc-per-node", str(ranks), "-m", "d3cli", *arguments),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def own_lines(stderr: str) -> list[str]:
    """The errors of d3 among what torchrun writes."""
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def rank_of(process: psutil.Process) -> str:
    return process.environ().get("RANK", "")


def started(parent: subprocess.Popen, rank: int) -> psutil.Process:
    """The process of a rank."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        for child in psutil.Process(parent.pid).children(recursive=True):
            if rank_of(child) == str(rank) and "torch.distributed.run" not in child.cmdline():
                return child
        time.sleep(0.1)
    raise AssertionError("the rank did not start")


GENERATE = ("generate", "demo", "Tell me a story about a fox.", "--dtype", "float32", "--json")
# Ends only by its limit.
LONG = (*GENERATE[:5], "--max-tokens", "900", "--temperature", "1.5", "--seed", "1")


@pytest.mark.slow
def test_two_ranks_write_the_same_reply_as_one_process(d3: D3) -> None:
    options = (*GENERATE, "--max-tokens", "24", "--temperature", "0.8", "--seed", "3")
    ran = torchrun(*options)
    out, err = ran.communicate(timeout=WAIT)
    assert ran.returncode == 0, err
    alone = d3(*options, "--quantization", "none")
    assert alone.code == 0
    ours, theirs = json.loads(out), json.loads(alone.out)
    assert ours["text"] == theirs["text"]
    assert ours["schedule"] == theirs["schedule"]
    assert [token["depth"] for token in ours["tokens"]] == [t["depth"] for t in theirs["tokens"]]
    assert err.count("model: the built-in model") == 1  # rank 0 alone talks


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_all(rank: int) -> None:
    ran = torchrun(*LONG)
    victim = started(ran, rank)
    assert ran.stdout is not None
    assert ran.stdout.read(1)  # the reply has begun
    others = [child for child in psutil.Process(ran.pid).children() if child.pid != victim.pid]
    victim.kill()
    _, err = ran.communicate(timeout=60)
    assert ran.returncode == 1
    assert own_lines(err) == [f"error: rank {rank} has ended"], err
    assert not any(child.is_running() and child.status() != "zombie" for child in others)


@pytest.mark.slow
def test_ctrl_c_ends_all() -> None:
    ran = torchrun(*LONG)
    started(ran, 1)
    assert ran.stdout is not None and ran.stdout.read(1)
    ran.send_signal(signal.SIGINT)
    _, err = ran.communicate(timeout=60)
    assert ran.returncode != 0
    assert own_lines(err) == []
    assert "forcefully" not in err  # as torchrun says of a rank that does not end by itself


@pytest.mark.slow
def test_a_number_of_ranks_that_does_not_fit_is_one_line() -> None:
    ran = torchrun(*GENERATE, ranks=3)
    _, err = ran.communicate(timeout=WAIT)
    assert ran.returncode == 1  # torchrun's own
    (line,) = own_lines(err)
    assert "which 3 ranks cannot share evenly" in line


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two network namespaces with addresses of their own, and a cable between them."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    names = [f"d3-{os.getpid()}-{number}" for number in range(2)]
    ends = [f"d3v{number}{os.getpid() % 10**8}" for number in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for number, (name, end) in enumerate(zip(names, ends, strict=True)):
                ip("link", "set", end, "netns", name, "name", "cable")
                ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "cable")
                ip("-n", name, "link", "set", "cable", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def on_both(machines: list[str], *options: str) -> list[subprocess.Popen]:
    place = ("--nnodes", "2", "--master-addr", "10.77.0.1", "--node-rank")
    return [
        torchrun(
            *options,
            ranks=1,
            where=(*place, str(number)),
            before=("ip", "netns", "exec", name),
        )
        for number, name in enumerate(machines)
    ]


@pytest.mark.slow
def test_two_machines_write_the_same_reply_as_one_process(d3: D3, machines: list[str]) -> None:
    options = (*GENERATE, "--max-tokens", "12")
    ran = on_both(machines, *options)
    ended = [process.communicate(timeout=WAIT) for process in ran]
    assert [process.returncode for process in ran] == [0, 0], ended
    alone = d3(*options, "--quantization", "none")
    assert json.loads(ended[0][0])["text"] == json.loads(alone.out)["text"]
    assert ended[1][0] == ""


@pytest.mark.slow
def test_a_machine_that_loses_its_cable_ends_all(machines: list[str]) -> None:
    ran = on_both(machines, *LONG)
    assert ran[0].stdout is not None and ran[0].stdout.read(1)  # the reply has begun
    subprocess.run(["ip", "-n", machines[1], "link", "set", "cable", "down"], check=True)
    ended = [process.communicate(timeout=90) for process in ran]
    assert [process.returncode for process in ran] == [1, 1]
    lines = [own_lines(err) for _, err in ended]
    assert lines == [["error: rank 1 has ended"], ["error: rank 0 has ended"]], ended


@pytest.mark.slow
def test_commands_without_a_split_model_run_on_rank_0_alone() -> None:
    ran = torchrun("--version")
    out, err = ran.communicate(timeout=WAIT)
    assert (ran.returncode, own_lines(err)) == (0, [])
    assert re.fullmatch(r"d3 \S+\n", out)


def be_launched(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    """Makes this process look like rank 0 of so many."""
    monkeypatch.setenv(LAUNCHED, "none")
    for name, value in zip(NUMBERS, (0, ranks, 0, ranks), strict=True):
        monkeypatch.setenv(name, str(value))


def test_a_single_rank_is_refused(d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
    be_launched(monkeypatch, 1)
    check_error(d3(*GENERATE), 2, "torchrun has started one rank")


def test_what_ranks_cannot_do_is_refused(d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
    be_launched(monkeypatch, 2)
    check_error(d3("generate", "demo", "x", "--units", "plane"), 2, "cannot be split over ranks")
    check_error(d3("serve", "demo"), 2, "d3 serve does not run on several ranks")
