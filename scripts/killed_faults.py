"""Whole commands that are killed, for ``scripts/faults.py``: what they leave, and who goes on."""

import json
import random
import re
import signal
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fault_runs import BYE, COMMANDS, HOME, broken_files, prepare, problems, run_one, write_inputs

from tests.forks import Ended, Forks

TO_A_FILE = "generate to a file"
CHATS = ("chat", "chat --lossless", "chat /export")
READERS = (
    ["models", "--json"],
    ["models", "--disk"],
    ["calibrate", "show"],
    ["chat", "--list", "--json"],
)


def killed(forks: Forks, rng: random.Random) -> Iterator[str]:
    """SIGKILL at a random moment of any command: what it leaves is whole, and can be read."""
    name = rng.choice(list(COMMANDS))
    after = rng.uniform(0, 6.0 if COMMANDS[name].loads else 0.3)
    with tempfile.TemporaryDirectory() as folder:
        _kill(forks, name, folder, after)
        found = list(broken_files(Path(folder)))
        for words in READERS:
            ended = forks.run(*words, env={"D3_HOME": folder})
            found += [f"{' '.join(words)}: {problem}" for problem in problems(ended)]
        yield from (f"{name} after {after:.3f} s: {problem}" for problem in found)


def _kill(forks: Forks, name: str, folder: str, after: float) -> Ended:
    """Runs a command in a home, and kills it after so many seconds if it still runs."""
    write_inputs()
    command = COMMANDS[name]
    prepare(forks, command, Path(folder))
    return forks.run(
        *(word.replace(HOME, folder) for word in command.arguments),
        stdin=command.typed.replace(HOME, folder),
        terminal=bool(command.typed),
        env={"D3_HOME": folder} | dict(command.env),
        signal=int(signal.SIGKILL),
        after=after,
    )


def batch_kills(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A batch that is killed, once or more: the run that goes on writes what was missing."""
    whole = undisturbed(forks)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rng.randint(1, 3)):
            _kill(forks, TO_A_FILE, folder, rng.uniform(0, 4.0))
        kept = _texts(Path(folder) / "results.jsonl")
        yield from run_one(forks, TO_A_FILE, home=Path(folder), may_fail=False)
        after = _texts(Path(folder) / "results.jsonl")
        if not kept.items() <= after.items():
            yield "what was finished has changed"
        if after != texts(whole):
            yield f"{len(kept)} of {len(texts(whole))} were finished; completed with other replies"


def chat_kills(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A chat that is killed: it goes on with whole messages, and can be deleted."""
    name, after = rng.choice(CHATS), rng.uniform(1.0, 6.0)
    with tempfile.TemporaryDirectory() as folder:
        env = {"D3_HOME": folder}
        _kill(forks, name, folder, after)
        found = list(broken_files(Path(folder)))
        ids = []
        for conversation in _listed(forks, folder):
            ids.append(conversation["id"])
            if conversation["problem"]:
                found.append(f"{conversation['id']}: {conversation['problem']}")
        if ids:
            ended = forks.run("chat", "--continue", stdin=BYE, terminal=True, env=env)
            found += problems(ended)
        for id_ in ids:
            found += problems(forks.run("chat", "--delete", id_, "--yes", env=env))
        found += [f"{one['id']} was not deleted" for one in _listed(forks, folder)]
        yield from (f"{name} after {after:.3f} s: {problem}" for problem in found)


def _listed(forks: Forks, folder: str) -> list[dict[str, str]]:
    ended = forks.run("chat", "--list", "--json", env={"D3_HOME": folder})
    found: list[dict[str, str]] = json.loads(ended.out)["conversations"]
    return found


@cache
def undisturbed(forks: Forks) -> bytes:
    """What a batch writes that nothing disturbs."""
    with tempfile.TemporaryDirectory() as folder:
        assert not list(run_one(forks, TO_A_FILE, home=Path(folder), may_fail=False))
        return (Path(folder) / "results.jsonl").read_bytes()


def texts(results: bytes) -> dict[int, str]:
    """The replies of a file of results by the numbers of their rows, without half a last line."""
    rows = [json.loads(line) for line in re.findall(rb"(.+)\n", results)]
    return {row["index"]: row["text"] for row in rows}


def _texts(path: Path) -> dict[int, str]:
    return texts(path.read_bytes()) if path.exists() else {}
