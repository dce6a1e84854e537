"""Faults of d3's own files, for ``scripts/faults.py``: kills, damage, two writers at once."""

import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fault_runs import (
    BYE,
    COMMANDS,
    FETCHED,
    MEASURED,
    PROMPT,
    broken_files,
    problems,
    write_inputs,
)
from killed_faults import TO_A_FILE, texts, undisturbed

from d3cli.files.vet_files import files_read
from tests.forks import Forks

KINDS = ("calibration", "drafts", "conversation", "settings", "kernels")  # files of a home


def kills(forks: Forks, rng: random.Random) -> Iterator[str]:
    """SIGKILL while a file is written again and again: the old version or the new one is there."""
    kind = rng.choice((*KINDS, "trace", "results"))
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


def at_once(forks: Forks, rng: random.Random) -> Iterator[str]:
    """Three processes write the same file at once; then a fourth one reads it."""
    kind = rng.choice(KINDS)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("at_once", "check"):
            ended = forks.call(name, folder, kind, "24", env={"D3_HOME": folder})
            if ended.code:
                yield f"{kind}: {ended.err[-300:]}"
        yield from (f"{kind}: {problem}" for problem in broken_files(Path(folder)))


def damage(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A damaged file of d3's own: no command changes it, and new files can be written."""
    with tempfile.TemporaryDirectory() as folder:
        home, env = Path(folder), {"D3_HOME": folder}
        for kind in ("calibration", "drafts", "conversation", "settings"):
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
        for kind in ("calibration", "drafts", "conversation"):  # what is written can be read again
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
    (["models", "--disk"], ""),
    (["calibrate", "--show"], ""),
    (["chat", "--list"], ""),
    (["chat", "demo", "--continue"], BYE),
    (["generate", "demo", PROMPT, "--max-tokens", "2"], ""),
    (["generate", "demo", PROMPT, "--max-tokens", "2", "--lossless", "depth"], ""),
)


READ = "d3cli.kernels.choice_file.read_machines"


def kernel_damage(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A damaged file of kernel choices: commands run, and it is replaced by the next choice."""
    with tempfile.TemporaryDirectory() as folder:
        path, env = Path(folder) / "kernels.json", {"D3_HOME": folder} | MEASURED
        forks.call("kernels", folder, "8", env=env)
        how = rng.choice(DAMAGES)
        path.write_bytes(_damaged(path.read_bytes(), how, rng))
        for words in (["generate", PROMPT, "--max-tokens", "2"], ["doctor", "--json"]):
            ended = forks.run(*words, env=env)
            if ended.code:
                yield f"{how}: {words[0]} ended with {ended.code}: {ended.err[-300:]}"
            yield from (f"{how}: {words[0]}: {problem}" for problem in problems(ended))
        for name, words in (("kernels", [folder, "1"]), (READ, [])):
            ended = forks.call(name, *words, env=env)
            if ended.code:
                yield f"{how}: {name}: {ended.err[-300:]}"


def batch_damage(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A damaged file of results: it is completed with the same replies, or left as it is."""
    write_inputs()
    whole, how = undisturbed(forks), rng.choice(DAMAGES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        damaged = _damaged(whole, how, rng)
        path.write_bytes(damaged)
        ended = forks.run(
            *(word.replace("{home}", folder) for word in COMMANDS[TO_A_FILE].arguments),
            env={"D3_HOME": folder},
        )
        yield from (f"{how}: {problem}" for problem in problems(ended, may_fail=True))
        after = path.read_bytes()
        if ended.code:
            if after != damaged:
                yield f"{how}: refused, and yet changed"
        elif how != "bits flipped" and texts(after) != texts(whole):
            yield f"{how}: completed with other replies"


def verify_damage(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A damaged file of a model that was fetched: `d3 models verify` says so, by its exit code."""
    write_inputs()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(FETCHED, model)
        path = rng.choice(sorted(files_read(model)))
        before, how = path.read_bytes(), rng.choice(DAMAGES)
        path.write_bytes(_damaged(before, how, rng))
        same = path.read_bytes() == before
        ended = forks.run("models", "verify", str(model), env={"D3_HOME": folder})
        yield from (f"{path.name} {how}: {problem}" for problem in problems(ended, may_fail=True))
        if ended.code != (0 if same else 1):
            yield f"{path.name} {how}: verified with {ended.code}"
