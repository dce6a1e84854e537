"""Faults of commands under torchrun, for ``scripts/faults.py``: signals and kills of ranks."""

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from fault_runs import PROMPT, broken_files

from tests.forks import ROOT, Forks

PATIENCE = 90.0  # seconds until all have ended


def ranks(forks: Forks, rng: random.Random) -> Iterator[str]:  # noqa: ARG001 - has its own processes
    """A signal or a kill of one rank or of torchrun, at a random moment: all end, with one line."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL")
    name, after, at = rng.choice(names), rng.uniform(0, 20), rng.choice((0, 1, None))
    with tempfile.TemporaryDirectory() as home:
        run = _started(Path(home))
        until = time.monotonic() + PATIENCE
        while len(family := _ranks_of(run)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(after)
        victims = [one for one in family if at is not None and _rank(one) == str(at)]
        if at is None and name != "SIGKILL" and run.poll() is None:  # a kill leaves torchrun's own
            victims = [psutil.Process(run.pid)]
        if not victims:
            run.terminate()
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(int(getattr(signal, name)))
        try:
            _, err = run.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            run.kill()
            yield f"{name} of {at} after {after:.1f} s: it does not end"
            _, err = run.communicate()
        time.sleep(1)
        for one in family:
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
                one.kill()
                yield f"{name} of {at} after {after:.1f} s: a rank is left"
        told = [line for line in err.splitlines() if line.startswith("error: ")]
        internal = [
            line for line in err.splitlines() if "internal error" in line or "d3cli/" in line
        ]
        if len(told) > 1 or internal:
            yield f"{name} of {at} after {after:.1f} s: {told}, {internal}"
        yield from broken_files(Path(home))


def _started(home: Path) -> "subprocess.Popen[str]":
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "d3cli", "generate", PROMPT, "--max-tokens", "400"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(psutil.Process().environ()) | {"D3_HOME": str(home), "OMP_NUM_THREADS": "1"},
    )


def _ranks_of(run: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes of the ranks that have started."""
    try:
        family = psutil.Process(run.pid).children(recursive=True)
    except psutil.Error:
        return []
    return [process for process in family if _rank(process)]


def _rank(process: psutil.Process) -> str:
    try:
        return process.environ().get("RANK", "")
    except psutil.Error:
        return ""
