"""Runs commands under hundreds of faults: signals, kills, full disks, too little memory, damage.

    python scripts/faults.py                  # all of them, an hour or two
    python scripts/faults.py --only signals --count 200 --seed 7
    python scripts/faults.py --minutes 3      # no more than that, or little more, of each kind

Every run is a real command line in a child forked from a process that has imported everything
(`tests/forks.py`). It fails if it shows a traceback, ends with an undocumented exit code, or leaves
a file that is neither the old version nor the new one. The script exits with 1 if a run failed.
"""

import argparse
import math
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval_faults import evals
from fault_places import memory_group, small_file_system
from fault_runs import (
    COMMANDS,
    FETCHED,
    PROMPT,
    WITH_A_MODEL,
    WRITERS,
    ImpossibleError,
    problems,
    run_one,
)
from gguf_faults import gguf_cut_while_loading, gguf_damage, gguf_disk, gguf_signals
from killed_faults import batch_kills, chat_kills, killed
from rank_faults import ranks
from safetensors.torch import load_file, save_file
from serve_faults import (
    serve_clients,
    serve_group,
    serve_hang_up,
    serve_home,
    serve_kills,
    serve_memory,
    serve_signals,
)
from store_faults import at_once, batch_damage, damage, kernel_damage, kills, verify_damage

from tests.conftest import BUILTIN_PATH
from tests.forks import Forks

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE")


def signals(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A signal at a random moment of a command."""
    name, which = rng.choice(list(COMMANDS)), rng.choice(SIGNALS)
    after = rng.uniform(0, 4.0 if COMMANDS[name].loads else 0.3)
    number = int(getattr(signal, which))
    for problem in run_one(forks, name, signal=number, after=after, may_fail=False):
        yield f"{which} after {after:.3f} s: {problem}"


def hang_up(forks: Forks, rng: random.Random) -> Iterator[str]:
    """The terminal goes away at a random moment of a command."""
    name, after = rng.choice(WITH_A_MODEL), rng.uniform(0, 4.0)
    for problem in run_one(forks, name, terminal=True, may_fail=False, hang_up=True, after=after):
        yield f"gone after {after:.3f} s: {problem}"


def full_disk(forks: Forks, rng: random.Random) -> Iterator[str]:
    """No file may be larger than a few bytes or kilobytes."""
    size = rng.choice((0, 1, 100, 1000, 4000))
    with tempfile.TemporaryDirectory() as folder:
        home, limits = Path(folder), {"FSIZE": size}
        for problem in run_one(forks, rng.choice(WRITERS), home=home, limits=limits):
            yield f"files of {size} bytes: {problem}"


def small_disk(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A file system of a few kilobytes, full or nearly so."""
    size = rng.randint(1, 12) << 12
    with small_file_system(size) as home:
        with suppress(OSError):
            (home / "taken").write_bytes(bytes(rng.randint(0, size)))
        for problem in run_one(forks, rng.choice(WRITERS), home=home):
            yield f"a disk of {size} bytes: {problem}"


def offload(forks: Forks, rng: random.Random) -> Iterator[str]:
    """Layers on a full disk, with little room elsewhere: the same reply, or an error."""
    taken = 1 << 18
    size = sum(path.stat().st_size for path in BUILTIN_PATH.iterdir()) + taken
    limits = f"cpu={rng.randint(100, 260)}MB,disk={rng.choice(('0', '10MB', '1GB'))}"
    words = (PROMPT, "--max-tokens", "12", "--dtype", "float32")
    with small_file_system(size) as disk:
        model = str(shutil.copytree(BUILTIN_PATH, disk / "model"))
        with suppress(OSError):
            (disk / "taken").write_bytes(bytes(taken))
        env = {"D3_HOME": str(disk / "home"), "TMPDIR": str(disk)}
        ended = forks.run("generate", model, *words, "--max-memory", limits, env=env)
        for problem in problems(ended, may_fail=True):
            yield f"{limits}: {problem}"
        alone = forks.run("generate", model, *words, "--quantization", "none", env=env)
        if not ended.code and ended.out != alone.out:
            yield f"{limits}: {ended.out!r} instead of {alone.out!r}"


def no_home(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A home that does not exist or cannot be written."""
    name, home = rng.choice(list(COMMANDS)), rng.choice(("/proc/d3", "/dev/null/d3", "/sys/d3"))
    for problem in run_one(forks, name, env={"D3_HOME": home}):
        yield f"D3_HOME={home}: {problem}"


def memory(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A limit on the address space."""
    most = rng.randint(1150, 2500) << 20
    for problem in run_one(forks, rng.choice(WITH_A_MODEL), limits={"AS": most}):
        yield f"{most >> 20} MB of addresses: {problem}"


def control_group(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A container's memory limit, beyond which the kernel kills."""
    most = rng.randint(40, 600) << 20
    with memory_group(most) as group:
        for problem in run_one(forks, rng.choice(WITH_A_MODEL), group=group):
            yield f"a control group of {most >> 20} MB: {problem}"


def ascii_terminal(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A terminal or a pipe, in a locale that has only ASCII or Latin-1."""
    name, encoding = rng.choice(list(COMMANDS)), rng.choice(("ascii", "latin-1"))
    terminal = rng.random() < 0.5
    for problem in run_one(forks, name, terminal=terminal, may_fail=False, encoding=encoding):
        yield f"{encoding}: {problem}"


def lost_output(forks: Forks, rng: random.Random) -> Iterator[str]:
    """Standard output or error that nothing can be written to, or whose reader goes away."""
    how: dict[str, Any] = rng.choice(
        ({"out": "/dev/full"}, {"err": "/dev/full"}, {"close_out": rng.choice((0, 1, 100, 2000))})
    )
    names = [
        name
        for name, command in COMMANDS.items()
        if not command.typed and not ("err" in how and command.may_fail)  # it could not say why
    ]
    for problem in run_one(forks, rng.choice(names), may_fail="out" in how, **how):
        yield f"{how}: {problem}"


# Commands that can run another model than the built-in one.
OF_ANY_MODEL = tuple(
    name
    for name in WITH_A_MODEL
    if not name.startswith("doctor") and FETCHED not in COMMANDS[name].arguments
)


def bad_weights(forks: Forks, rng: random.Random) -> Iterator[str]:
    """Weights that are NaN, infinite or huge: a reply, or an error that says so."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(BUILTIN_PATH, model)
        tensors = load_file(model / "model.safetensors")
        name = rng.choice(list(tensors))
        values = tensors[name].view(-1)
        value = rng.choice((math.nan, math.inf, -math.inf, 3e38))
        values[rng.choice((slice(None), rng.randrange(len(values))))] = value
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        for problem in run_one(forks, rng.choice(OF_ANY_MODEL), model=model):
            yield f"{value} in {name}: {problem}"


def half_download(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A model with a file that is missing, cut short or still being fetched."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(BUILTIN_PATH, model)
        path = rng.choice(sorted(model.iterdir()))
        how = rng.choice(("missing", "cut short", "still being fetched", "a link to nothing"))
        data = path.read_bytes()
        path.unlink()
        if how == "cut short":
            path.write_bytes(data[: rng.randrange(len(data))])
        elif how == "still being fetched":
            Path(f"{path}.incomplete").write_bytes(data[: rng.randrange(len(data))])
        elif how == "a link to nothing":
            path.symlink_to(model / "blobs" / "0")
        generate = ["generate", str(model), PROMPT, "--max-tokens", "5"]
        command = rng.choice((generate, ["models", "verify", str(model)]))
        ended = forks.run(*command, env={"D3_HOME": folder})
        for problem in problems(ended, may_fail=True):
            yield f"{path.name} {how}: {problem}"


FAULTS: dict[str, tuple[Callable[[Forks, random.Random], Iterator[str]], int]] = {
    "signals": (signals, 200),
    "kills": (kills, 200),
    "killed": (killed, 60),
    "batch_kills": (batch_kills, 20),
    "chat_kills": (chat_kills, 20),
    "hang_up": (hang_up, 40),
    "full_disk": (full_disk, 30),
    "small_disk": (small_disk, 30),
    "no_home": (no_home, 15),
    "lost_output": (lost_output, 60),
    "memory": (memory, 40),
    "control_group": (control_group, 20),
    "ascii_terminal": (ascii_terminal, 20),
    "bad_weights": (bad_weights, 40),
    "damage": (damage, 40),
    "half_download": (half_download, 40),
    "verify_damage": (verify_damage, 40),
    "gguf_damage": (gguf_damage, 60),
    "gguf_cut_while_loading": (gguf_cut_while_loading, 40),
    "gguf_signals": (gguf_signals, 40),
    "gguf_disk": (gguf_disk, 6),
    "at_once": (at_once, 10),
    "kernel_damage": (kernel_damage, 20),
    "batch_damage": (batch_damage, 40),
    "offload": (offload, 20),
    "serve_signals": (serve_signals, 60),
    "serve_kills": (serve_kills, 20),
    "serve_clients": (serve_clients, 10),
    "serve_home": (serve_home, 20),
    "serve_memory": (serve_memory, 20),
    "serve_group": (serve_group, 10),
    "serve_hang_up": (serve_hang_up, 10),
    "ranks": (ranks, 6),
    "evals": (evals, 20),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=FAULTS, nargs="+", help="run these kinds of faults")
    parser.add_argument("--count", type=int, help="runs of each kind")
    parser.add_argument("--minutes", type=float, help="no more runs of a kind after this time")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    failed: Counter[str] = Counter()
    with Forks() as forks:
        for name, (fault, count) in FAULTS.items():
            if asked.only and name not in asked.only:
                continue
            forks.codes.clear()
            runs, until = 0, time.monotonic() + 60 * (asked.minutes or math.inf)
            try:
                for number in range(asked.count or count):
                    if time.monotonic() > until:
                        break
                    runs += 1
                    for problem in fault(forks, random.Random(f"{name} {asked.seed} {number}")):
                        failed[name] += 1
                        print(f"{name} {number}: {problem}", flush=True)
            except ImpossibleError as reason:
                print(f"{name}: not run: {reason}", flush=True)
                continue
            codes = ", ".join(f"{n} with {code}" for code, n in sorted(forks.codes.items()))
            print(f"{name}: {runs} runs, {failed[name]} problems; ended {codes}", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
