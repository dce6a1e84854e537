"""What can go wrong from outside, by the hundred: signals, kills, full disks, limits on memory.

    python scripts/faults.py                  # all of it, some minutes
    python scripts/faults.py --only signals --count 200 --seed 7

Every run is a real command line in a child forked from a process that has imported everything
(`tests/forks.py`). A run fails where it shows a traceback, an exit code that is not documented, or
a file that is neither what it was nor what it was to become. Ends with 1 where one failed.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.forks import Ended, Forks  # noqa: E402 - found by the line above

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE")
PROMPT = "Tell me a story about a fox."
# Each command, with files that it writes in the working directory.
# (In a chat Ctrl-C ends a reply and takes back what was typed ahead: so /bye more than once.)
COMMANDS: dict[str, tuple[list[str], str]] = {
    "generate": (["generate", PROMPT, "--seed", "1"], ""),
    "generate --json": (["generate", PROMPT, "--json"], ""),
    "chat": (["chat"], "Hello.\nTell me a story.\n/compare\n" + "/bye\n" * 8),
    "profile": (["profile", "--prompt", PROMPT, "-o", "json"], ""),
    "calibrate": (["calibrate", "--target-drop", "5%", "--max-time", "10s"], ""),
    "models": (["models"], ""),
    "models default": (["models", "default", "demo"], ""),
}
ALLOWED = {0, 129, 130, 143}  # and 1 and 3, with an error that says so


def problems(ended: Ended, *, may_fail: bool = False) -> Iterator[str]:
    """What is wrong with how a command ended."""
    if "Traceback" in ended.err or "internal error" in ended.err:
        yield f"shows its inside: {ended.err[-300:]}"
    told = ended.err.count("error: ") == 1
    if ended.code not in ALLOWED and not (ended.code in (1, 2, 3) and told and may_fail):
        yield f"ended with {ended.code}: {ended.err[-300:]}"


def broken_files(home: Path) -> Iterator[str]:
    """Files under a home that cannot be read as what they are."""
    for path in home.rglob("*"):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".toml":
                tomllib.loads(path.read_text())
            elif path.suffix == ".jsonl" and path.is_file():
                for line in path.read_text().splitlines():
                    json.loads(line)
        except ValueError as error:
            yield f"{path.name} is broken: {error}"


def signals(forks: Forks, rng: random.Random) -> Iterator[str]:
    """One command, one signal, at one random moment of it."""
    name = rng.choice(list(COMMANDS))
    arguments, typed = COMMANDS[name]
    which = rng.choice(SIGNALS)
    after = rng.uniform(0, 0.3 if name == "models" else 4.0)
    with tempfile.TemporaryDirectory() as folder:
        ended = forks.run(
            *arguments,
            stdin=typed,
            terminal=bool(typed),
            env={"D3_HOME": folder},
            signal=int(getattr(signal, which)),
            after=after,
        )
        for problem in (
            *problems(ended, may_fail=name == "calibrate"),
            *broken_files(Path(folder)),
        ):
            yield f"{name}, {which} after {after:.3f} s: {problem}"


def kills(forks: Forks, rng: random.Random) -> Iterator[str]:
    """Kill -9 while the same file is written over and over: it is whole, old or new."""
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


def full_disk(forks: Forks, rng: random.Random) -> Iterator[str]:
    """No file may grow beyond a few bytes or kilobytes."""
    arguments, typed = COMMANDS[rng.choice(["chat", "profile", "calibrate", "models default"])]
    with tempfile.TemporaryDirectory() as folder:
        size = rng.choice((0, 1, 100, 1000, 4000))
        to_file = ["--output-file", str(Path(folder) / "trace.json")]
        saved = to_file if arguments[0] == "profile" else []
        ended = forks.run(
            *arguments,
            *saved,
            stdin=typed,
            terminal=bool(typed),
            env={"D3_HOME": folder},
            limits={"FSIZE": size},
        )
        for problem in problems(ended, may_fail=True):
            yield f"{arguments[0]} with files of {size} bytes: {problem}"
        yield from (f"{arguments[0]}: {problem}" for problem in broken_files(Path(folder)))


def no_home(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A home that cannot be written."""
    name = rng.choice(list(COMMANDS))
    arguments, typed = COMMANDS[name]
    home = rng.choice(("/proc/d3", "/dev/null/d3", "/sys/d3"))
    for problem in problems(
        forks.run(*arguments, stdin=typed, terminal=bool(typed), env={"D3_HOME": home}),
        may_fail=True,
    ):
        yield f"{name} with D3_HOME={home}: {problem}"


def memory(forks: Forks, rng: random.Random) -> Iterator[str]:
    """So much address space and no more."""
    name = rng.choice([name for name in COMMANDS if not name.startswith("models")])
    arguments, typed = COMMANDS[name]
    most = rng.randint(700, 2500) << 20
    with tempfile.TemporaryDirectory() as folder:
        ended = forks.run(
            *arguments,
            stdin=typed,
            terminal=bool(typed),
            env={"D3_HOME": folder},
            limits={"AS": most},
        )
        for problem in problems(ended, may_fail=True):
            yield f"{name} with {most >> 20} MB: {problem}"


def at_once(forks: Forks, rng: random.Random) -> Iterator[str]:
    """Two processes write, one reads, all at the same file."""
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
    "full_disk": (full_disk, 30),
    "no_home": (no_home, 15),
    "memory": (memory, 40),
    "at_once": (at_once, 6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=FAULTS, help="one kind")
    parser.add_argument("--count", type=int, help="of each kind, in place of its own number")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    failed: Counter[str] = Counter()
    with Forks() as forks:
        for name, (fault, count) in FAULTS.items():
            if asked.only not in (None, name):
                continue
            count = asked.count or count
            forks.codes.clear()
            for number in range(count):
                for problem in fault(forks, random.Random(f"{name} {asked.seed} {number}")):
                    failed[name] += 1
                    print(f"{name} {number}: {problem}", flush=True)
            codes = ", ".join(f"{n} with {code}" for code, n in sorted(forks.codes.items()))
            print(f"{name}: {count} runs, {failed[name]} problems; ended {codes}", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
