"""Faults of GGUF files, for ``scripts/faults.py``: damage, changes while they load, full disks."""

import random
import signal
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fault_runs import PROMPT, broken_files, problems, run_one

from tests.forks import Forks
from tests.gguf_models import write_gguf

PARTS = 2


@cache
def _model() -> dict[str, bytes]:
    """The parts of a small split model, by name."""
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / f"x-00001-of-{PARTS:05}.gguf"
        write_gguf(first, kind="Q8_0", parts=PARTS)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _write(folder: Path) -> Path:
    """Writes the model; returns its first part."""
    for name, data in _model().items():
        (folder / name).write_bytes(data)
    return folder / next(iter(_model()))


def gguf_damage(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A part that is missing, cut short, emptied, or has other bytes in its header or weights."""
    with tempfile.TemporaryDirectory() as folder:
        first = _write(Path(folder))
        part = first.with_name(rng.choice(list(_model())))
        data, how = bytearray(part.read_bytes()), rng.choice(("gone", "cut", "header", "weights"))
        if how == "gone":
            part.unlink()
        else:
            size = 4000 if how == "header" else len(data)
            for at in rng.choices(range(size), k=rng.randint(1, 8)):
                data[at] ^= 1 << rng.randrange(8)
            part.write_bytes(data[: rng.randrange(len(data))] if how == "cut" else data)
        command = rng.choice(
            (["generate", first, "--prompt", PROMPT, "--max-tokens", "3"], ["models", folder])
        )
        ended = forks.run(*command, env={"D3_HOME": folder})
        for problem in problems(ended, may_fail=True):
            yield f"{part.name} {how}: {command[0]}: {problem}"


def gguf_cut_while_loading(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A file that becomes shorter, or goes, at a random moment of loading."""
    with tempfile.TemporaryDirectory() as folder:
        first = _write(Path(folder))
        part, after = first.with_name(rng.choice(list(_model()))), rng.uniform(0, 1.5)
        size = rng.randrange(len(_model()[part.name]))

        def change() -> None:
            if rng.random() < 0.3:
                part.unlink()
            else:
                with part.open("rb+") as file:
                    file.truncate(size)

        timer = threading.Timer(after, change)
        timer.start()
        found = list(run_one(forks, "generate", "--max-tokens", "3", model=first))
        timer.cancel()
        yield from (f"{part.name} changed after {after:.3f} s: {problem}" for problem in found)


def gguf_signals(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A signal, also SIGKILL, at a random moment of loading: the model's files stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        first, after = _write(Path(folder)), rng.uniform(0, 1.5)
        which = rng.choice(("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"))
        number = int(getattr(signal, which))
        arguments = ["generate", first, "--prompt", PROMPT, "--max-tokens", "3"]
        home = Path(folder) / "home"
        ended = forks.run(*arguments, env={"D3_HOME": str(home)}, signal=number, after=after)
        found = [] if ended.code == -signal.SIGKILL else list(problems(ended))
        found += broken_files(home)
        found += [
            f"{name} was changed"
            for name, data in _model().items()
            if first.with_name(name).read_bytes() != data
        ]
        yield from (f"{which} after {after:.3f} s: {problem}" for problem in found)


def gguf_disk(forks: Forks, rng: random.Random) -> Iterator[str]:
    """No room for the temporary file of loading, or no directory for it."""
    with tempfile.TemporaryDirectory() as folder:
        first, how = _write(Path(folder)), rng.choice(("full", "gone", "no permission"))
        env, limits = {"TMPDIR": "/proc" if how == "no permission" else folder}, {}
        if how == "full":
            limits = {"FSIZE": rng.choice((0, 100))}
        elif how == "gone":
            env["TMPDIR"] = str(Path(folder) / "gone")
        for problem in run_one(forks, "generate", model=first, env=env, limits=limits):
            yield f"{how}: {problem}"
