"""Runs commands under hundreds of faults: signals, kills, full disks, too little memory, damage.

    python scripts/faults.py                  # all of them, some minutes
    python scripts/faults.py --only signals --count 200 --seed 7

Every run is a real command line in a child forked from a process that has imported everything
(`tests/forks.py`). It fails if it shows a traceback, ends with an undocumented exit code, or leaves
a file that is neither the old version nor the new one. The script exits with 1 if a run failed.
"""

import argparse
import math
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from fault_runs import (
    COMMANDS,
    PROMPT,
    WITH_A_MODEL,
    ImpossibleError,
    broken_files,
    problems,
    run_one,
)
from gguf_faults import gguf_cut_while_loading, gguf_damage, gguf_disk, gguf_signals
from safetensors.torch import load_file, save_file

from tests.conftest import BUILTIN_PATH
from tests.forks import Forks

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE")


def signals(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A signal at a random moment of a command."""
    name, which = rng.choice(list(COMMANDS)), rng.choice(SIGNALS)
    after = rng.uniform(0, 0.3 if name == "models" else 4.0)
    number = int(getattr(signal, which))
    for problem in run_one(forks, name, signal=number, after=after, may_fail=False):
        yield f"{which} after {after:.3f} s: {problem}"


def kills(forks: Forks, rng: random.Random) -> Iterator[str]:
    """SIGKILL while a file is written again and again: the old version or the new one is there."""
    kind = rng.choice(("calibration", "conversation", "trace", "settings"))
    with tempfile.TemporaryDirectory() as folder:
        forks.call(
            kind,
            folder,
            env={"D3_HOME": folder},
            signal=int(signal.SIGKILL),
            after=rng.uniform(0.02, 0.4),
        )
        ended = forks.call("check", folder, kind, env={"D3_HOME": folder})
        if ended.code:
            yield f"{kind}: {ended.err[-300:]}"
        yield from (f"{kind}: {problem}" for problem in broken_files(Path(folder)))


def hang_up(forks: Forks, rng: random.Random) -> Iterator[str]:
    """The terminal goes away at a random moment of a command."""
    name, after = rng.choice(WITH_A_MODEL), rng.uniform(0, 4.0)
    for problem in run_one(forks, name, terminal=True, may_fail=False, hang_up=True, after=after):
        yield f"gone after {after:.3f} s: {problem}"


def full_disk(forks: Forks, rng: random.Random) -> Iterator[str]:
    """No file may be larger than a few bytes or kilobytes."""
    size = rng.choice((0, 1, 100, 1000, 4000))
    with tempfile.TemporaryDirectory() as folder:
        for problem in run_one(
            forks, *_writer(rng, Path(folder)), home=Path(folder), limits={"FSIZE": size}
        ):
            yield f"files of {size} bytes: {problem}"


def small_disk(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A file system of a few kilobytes, full or nearly so."""
    with tempfile.TemporaryDirectory() as folder:
        size, home = rng.randint(1, 12) << 12, Path(folder)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True).returncode:
            raise ImpossibleError("this user may not mount a file system")
        try:
            with suppress(OSError):
                (home / "taken").write_bytes(bytes(rng.randint(0, size)))
            for problem in run_one(forks, *_writer(rng, home), home=home):
                yield f"a disk of {size} bytes: {problem}"
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def _writer(rng: random.Random, folder: Path) -> list[str]:
    """A command that writes a file, with the arguments that say where."""
    name = rng.choice(["chat", "profile", "calibrate", "models default"])
    return [name, *(("--output-file", str(folder / "trace.json")) if name == "profile" else ())]


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
    groups = Path("/sys/fs/cgroup")
    version_2 = (groups / "cgroup.controllers").exists()
    group = groups / ("" if version_2 else "memory") / f"d3-faults-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.max" if version_2 else "memory.limit_in_bytes")
        limit.write_text(str(most))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        raise ImpossibleError(f"a control group cannot be made: {error}") from None
    try:
        for problem in run_one(forks, rng.choice(WITH_A_MODEL), group=str(group)):
            yield f"a control group of {most >> 20} MB: {problem}"
    finally:
        group.rmdir()


def ascii_terminal(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A terminal or a pipe, in a locale that has only ASCII or Latin-1."""
    name, encoding = rng.choice(list(COMMANDS)), rng.choice(("ascii", "latin-1"))
    terminal = rng.random() < 0.5
    for problem in run_one(forks, name, terminal=terminal, may_fail=False, encoding=encoding):
        yield f"{encoding}: {problem}"


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
        command = rng.choice(["generate", "chat", "profile", "calibrate"])
        for problem in run_one(forks, command, model=model):
            yield f"{value} in {name}: {problem}"


def damage(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A damaged file of d3's own: no command changes it, and new files can be written."""
    with tempfile.TemporaryDirectory() as folder:
        home, env = Path(folder), {"D3_HOME": folder}
        for kind in ("calibration", "conversation", "settings"):
            forks.call(kind, folder, "1", env=env)
        files = sorted(path for path in home.rglob("*") if path.is_file())
        path = rng.choice(files)
        how = rng.choice(DAMAGES)
        path.write_bytes(_damaged(path.read_bytes(), how, rng))
        before = {path: path.read_bytes() for path in files}
        for arguments, typed in READERS:
            ended = forks.run(*arguments, stdin=typed, terminal=bool(typed), env=env)
            for problem in problems(ended, may_fail=True):
                yield f"{path.name} {how}: {' '.join(arguments)}: {problem}"
        for other, bytes_ in before.items():
            if other.read_bytes() != bytes_:
                yield f"{path.name} {how}: {other.name} was changed"
        for kind in ("calibration", "conversation"):  # what is written now can be read again
            ended = forks.call(kind, folder, "1", env=env)
            if ended.code and "\nd3cli.base.errors." not in ended.err:
                yield f"{path.name} {how}: writing {kind}: {ended.err[-300:]}"


DAMAGES = ("none", "cut short", "bits flipped", "emptied", "zeroed", "noise", "twice")


def _damaged(data: bytes, how: str, rng: random.Random) -> bytes:
    if how == "bits flipped":
        flipped = bytearray(data)
        for at in rng.choices(range(len(data)), k=rng.randint(1, 8)) if data else ():
            flipped[at] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    return {
        "none": data,
        "cut short": data[: rng.randrange(len(data) + 1)],
        "emptied": b"",
        "zeroed": bytes(len(data)),
        "noise": rng.randbytes(len(data)),
        "twice": data + data,
    }[how]


READERS = (
    (["models"], ""),
    (["models", "--json"], ""),
    (["calibrate", "--show"], ""),
    (["chat", "--list"], ""),
    (["chat", "demo", "--continue"], "\x15/bye\n" * 8),
    (["generate", "demo", PROMPT, "--max-tokens", "2"], ""),
)


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


def at_once(forks: Forks, rng: random.Random) -> Iterator[str]:
    """Two processes write the same file at once; then a third one reads it."""
    kind = rng.choice(("calibration", "conversation", "settings"))
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder, Forks() as other:

        def write(one: Forks) -> None:
            ended = one.call(kind, folder, "60", env={"D3_HOME": folder})
            if ended.code:
                found.append(f"{kind}: {ended.err[-300:]}")

        writers = [threading.Thread(target=write, args=(one,)) for one in (forks, other)]
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join()
        ended = forks.call("check", folder, kind, env={"D3_HOME": folder})
        if ended.code:
            found.append(f"{kind}: {ended.err[-300:]}")
        found += [f"{kind}: {problem}" for problem in broken_files(Path(folder))]
    yield from found


FAULTS: dict[str, tuple[Callable[[Forks, random.Random], Iterator[str]], int]] = {
    "signals": (signals, 200),
    "kills": (kills, 200),
    "hang_up": (hang_up, 40),
    "full_disk": (full_disk, 30),
    "small_disk": (small_disk, 30),
    "no_home": (no_home, 15),
    "memory": (memory, 40),
    "control_group": (control_group, 20),
    "ascii_terminal": (ascii_terminal, 20),
    "bad_weights": (bad_weights, 40),
    "damage": (damage, 40),
    "half_download": (half_download, 40),
    "gguf_damage": (gguf_damage, 60),
    "gguf_cut_while_loading": (gguf_cut_while_loading, 40),
    "gguf_signals": (gguf_signals, 40),
    "gguf_disk": (gguf_disk, 6),
    "at_once": (at_once, 6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=FAULTS, help="run this kind of fault")
    parser.add_argument("--count", type=int, help="runs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    failed: Counter[str] = Counter()
    with Forks() as forks:
        for name, (fault, count) in FAULTS.items():
            if asked.only not in (None, name):
                continue
            count = asked.count or count
            forks.codes.clear()
            try:
                for number in range(count):
                    for problem in fault(forks, random.Random(f"{name} {asked.seed} {number}")):
                        failed[name] += 1
                        print(f"{name} {number}: {problem}", flush=True)
            except ImpossibleError as reason:
                print(f"{name}: not run: {reason}", flush=True)
                continue
            codes = ", ".join(f"{n} with {code}" for code, n in sorted(forks.codes.items()))
            print(f"{name}: {count} runs, {failed[name]} problems; ended {codes}", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
