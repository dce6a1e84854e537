"""Uses d3 for hours and checks for leaks and changes: replies, calibrations, a chat, a server.

    pip install -e ".[test]"
    python scripts/soak.py --hours 2 --json soak.json

Three processes live all the time, each with the built-in model in float32:

- a worker: single replies, conversations, lossless replies and short calibrations with Python;
- `d3 chat` at a terminal of its own, with commands between the turns;
- `d3 serve` with parallel clients, of which some leave in the middle of a reply.

They take turns. Every half minute the resident memory, open descriptors and threads of each are
noted. What the worker and the chat wrote is, every few minutes, asked again of a fresh process, and
must be the same; what the server must answer, a fresh process wrote before. Exits with 1 if an
output differed, if more descriptors or threads are left in the end, or if memory rises by more
than 5 MB an hour once warm.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from soak_chat import SoakedChat
from soak_serve import SERVED, Soak
from soak_work import TURNS, Job, calibration_job, replies_job

from d3cli.base.settings import BUILTIN

FOLDER = Path(__file__).parent
SAMPLE_S = 30.0
WARM_S, WARM_SHARE = 1800.0, 0.5  # memory may still grow so long, or for that share of a short run
MAY_RISE = 5.0  # megabytes an hour
LAST_LOOKS = 5  # a descriptor or a thread too many is there at each of them
CLIENTS, SERVE_S, CASES = 4, 15.0, 40
WORKER_JOBS = 8  # between one conversation of the chat and the next
CALIBRATES = 0.03  # the share of the worker's jobs that calibrate
FIRST_CALIBRATIONS = 4  # before all else, half of them in all forms: the rare kinds are warm too


def repeatable(job: Job) -> int | None:
    """How many outputs of a job are the same each time; None: all.

    When drafts are worth their time depends on the clock. With them, sampled replies have the same
    distribution, not the same tokens (docs/lossless.md).
    """
    if not job.get("lossless"):
        return None
    sampled = [at for at, turn in enumerate(job["turns"]) if turn["temperature"]]
    return min(sampled, default=None)


class Worker:
    """A process that does jobs, see ``soak_work.py``."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, str(FOLDER / "soak_work.py")]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.pid = self._process.pid
        self.state: dict[str, int] = {}

    def do(self, job: Job) -> list[Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self.state = answer["state"]
        return answer["output"]

    def end(self) -> None:
        self._process.communicate()


def in_a_fresh_process(job: Job) -> list[Any]:
    worker = Worker()
    try:
        return worker.do(job)
    finally:
        worker.end()


@contextmanager
def server() -> Iterator[tuple[int, str]]:
    """A server process, and the address of its interface."""
    command = [sys.executable, "-m", "d3cli", "serve", BUILTIN, "--served-name", SERVED]
    command += ["--port", "0", "--dtype", "float32", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        yield (
            process.pid,
            next(found[1] for line in lines if (found := re.search(r"listening on (\S+)", line))),
        )
    finally:
        process.terminate()
        process.wait(60)


async def serve_for(seconds: float, url: str, cases: list[Job], seed: int) -> Soak:
    """Lets clients converse with the server for some seconds."""
    soak = Soak(url, cases, time.monotonic() + seconds)
    async with soak:
        await asyncio.gather(*(soak.client(seed + number) for number in range(CLIENTS)))
    return soak


class Watch:
    """Looks at the processes from time to time."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._began, self._next = time.monotonic(), 0.0
        self.samples: dict[str, list[dict[str, float]]] = {name: [] for name in processes}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def look(self, **more: dict[str, int]) -> None:
        """Notes how the processes are, if it is time; and what is said of them."""
        if self.seconds < self._next:
            return
        self._next = self.seconds + SAMPLE_S
        for name, process in self._processes.items():
            sample = {
                "seconds": self.seconds,
                "resident": process.memory_info().rss,
                "descriptors": process.num_fds(),
                "threads": process.num_threads(),
            }
            self.samples[name].append(sample | more.get(name, {}))

    def problems(self) -> Iterator[str]:
        """Prints the figures of each process; yields what is wrong with them."""
        warm_s = min(WARM_S, WARM_SHARE * self.seconds)
        for name, samples in self.samples.items():
            warm = [sample for sample in samples if sample["seconds"] >= warm_s]
            if len(warm) < 3:
                yield f"{name}: too few samples"
                continue
            rise, error = slope(warm)
            print(
                f"{name}: resident {warm[0]['resident'] / 1e6:.1f} MB warm, "
                f"{warm[-1]['resident'] / 1e6:.1f} at the end; slope {rise:+.2f} +- {error:.2f} MB "
                f"an hour"
            )
            if rise > MAY_RISE:
                yield f"{name}: memory rises"
            half = len(warm) // 2
            for what in ("descriptors", "threads"):
                first = max(sample[what] for sample in warm[:half])
                later = [sample[what] for sample in warm[half:]]
                print(
                    f"{name}: at most {first:.0f} {what} in the first half, {max(later):.0f} "
                    f"later, {later[-1]:.0f} in the end"
                )
                if min(later[-LAST_LOOKS:]) > first:  # one that stays; others come and go
                    yield f"{name}: more {what}"


def slope(samples: list[dict[str, float]]) -> tuple[float, float]:
    """How resident memory rises, in megabytes an hour, and the standard error."""
    hours = np.array([sample["seconds"] for sample in samples]) / 3600
    sizes = np.array([sample["resident"] for sample in samples]) / 1e6
    (rise, _), covariance = np.polyfit(hours, sizes, 1, cov="unscaled")
    rest = sizes - np.polyval((rise, _), hours)
    error = np.sqrt(covariance[0, 0] * (rest**2).sum() / (len(samples) - 2))
    return float(rise), float(error)


class Day:
    """The hours of use: what was done, and what was wrong."""

    def __init__(self, seed: int, compare_every: float) -> None:
        self._rng = random.Random(seed)
        self._compare_every, self._next_comparison = compare_every, compare_every
        prepared = in_a_fresh_process({"kind": "cases", "count": CASES})
        self._cases, self._prompts = prepared[0], prepared[1]
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, hours: float) -> Watch:
        with ExitStack() as stack:
            worker = Worker()
            stack.callback(worker.end)
            chat = SoakedChat(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            stack.callback(chat.end)
            pid, url = stack.enter_context(server())
            watch = Watch({"worker": worker.pid, "chat": chat.pid, "server": pid})
            for number in range(FIRST_CALIBRATIONS):
                self._do(worker, watch, calibration_job(self._rng, forms=number % 2 == 0))
            while watch.seconds < 3600 * hours:
                for _ in range(WORKER_JOBS):
                    self._job(worker, watch)
                self._chat(chat, watch)
                self._serve(url, watch)
        return watch

    def _job(self, worker: Worker, watch: Watch) -> None:
        rng = self._rng
        if rng.random() < CALIBRATES:
            self._do(worker, watch, calibration_job(rng, forms=rng.random() < 0.3))
            return
        turns = 1 if rng.random() < 0.5 else rng.randint(2, TURNS)
        self._do(worker, watch, replies_job(rng, self._prompts, turns))

    def _do(self, worker: Worker, watch: Watch, job: Job) -> None:
        if job["kind"] == "calibration":
            self.counts["calibrations"] += 1
        else:
            self.counts["lossless replies" if job["lossless"] else "replies"] += len(job["turns"])
        output = worker.do(job)
        watch.look(worker=worker.state)
        self._compare(job, output, watch)

    def _chat(self, chat: SoakedChat, watch: Watch) -> None:
        job = replies_job(self._rng, self._prompts, self._rng.randint(1, 4))
        output = chat.talk(self._rng, job)
        self.counts["replies in the chat"] += len(job["turns"])
        watch.look()
        self._compare(job, output, watch)

    def _compare(self, job: Job, output: list[Any], watch: Watch) -> None:
        """Asks a fresh process the same, if it is time."""
        if watch.seconds < self._next_comparison:
            return
        self._next_comparison = watch.seconds + self._compare_every
        self.counts["compared with fresh processes"] += 1
        told = repeatable(job)
        if (expected := in_a_fresh_process(job))[:told] != output[:told]:
            self.problems.append(f"{output} instead of {expected} for {json.dumps(job)}")

    def _serve(self, url: str, watch: Watch) -> None:
        soak = asyncio.run(serve_for(SERVE_S, url, self._cases, self._rng.randrange(1 << 30)))
        for name, count in soak.counts.items():
            self.counts[f"server: {name}"] += count
        self.problems += soak.problems
        watch.look()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare-every", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, help="write the samples there")
    asked = parser.parse_args()
    day = Day(asked.seed, asked.compare_every)
    watch = day.run(asked.hours)
    print(f"{asked.hours:g} hours: " + ", ".join(f"{n:,} {name}" for name, n in day.counts.items()))
    problems = [*watch.problems(), *day.problems]
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if asked.json:
        asked.json.write_text(json.dumps({"asked": str(asked), "samples": watch.samples}))
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
