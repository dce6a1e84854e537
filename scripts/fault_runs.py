"""Runs of a command under a fault, for ``scripts/faults.py``, and what is wrong with them."""

import json
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.forks import Ended, Forks

PROMPT = "Tell me a story about a fox."
# Each command, and what is typed. In a chat Ctrl-C ends a reply and drops what was typed ahead, so
# /bye is typed several times. A line that failed is back in the prompt, so Ctrl-U clears it first.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "generate": (["generate", PROMPT, "--seed", "1"], ""),
    "generate --json": (["generate", PROMPT, "--json"], ""),
    "chat": (
        ["chat"],
        "\x15Hello.\n\x15Tell me a story.\n\x15/compare\n" + "\x15/bye\n" * 8,
    ),
    "profile": (["profile", "--prompt", PROMPT, "-o", "json"], ""),
    "calibrate": (["calibrate", "--target-drop", "5%", "--max-time", "10s"], ""),
    "models": (["models"], ""),
    "models default": (["models", "default", "demo"], ""),
}
ALLOWED = {0, 129, 130, 143}  # and 1, 2 and 3 if an error says why


class ImpossibleError(Exception):
    """The fault cannot be made on this machine, or by this user."""


def problems(ended: Ended, *, may_fail: bool = False) -> Iterator[str]:
    """Yields what is wrong with how a command ended."""
    if "Traceback" in ended.err or "internal error" in ended.err:
        yield f"shows its internals: {ended.err[-300:]}"
    told = ended.err.count("error: ") == 1
    if ended.code not in ALLOWED and not (ended.code in (1, 2, 3) and told and may_fail):
        yield f"ended with {ended.code}: {ended.err[-300:]}"


def broken_files(home: Path) -> Iterator[str]:
    """Yields the files under a home that cannot be parsed."""
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


WITH_A_MODEL = tuple(name for name in COMMANDS if not name.startswith("models"))


def run_one(
    forks: Forks,
    name: str,
    *more: str,
    model: Path | None = None,
    home: Path | None = None,
    terminal: bool = False,
    may_fail: bool = True,
    env: dict[str, str] | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Runs a command in a new home; yields what is wrong with how it ended and what it left.

    Args:
        name: a key of `COMMANDS`.
        more: arguments added to its own.
        model: runs in place of the built-in model.
        terminal: run it at a terminal even if nothing is typed.
        may_fail: an error is no problem if it says why. A calibration may always lack time.
    """
    arguments, typed = COMMANDS[name]
    named = [arguments[0], *([str(model)] if model else []), *arguments[1:], *more]
    with tempfile.TemporaryDirectory() as folder:
        home = home or Path(folder)
        ended = forks.run(
            *named,
            stdin=typed,
            terminal=terminal or bool(typed),
            env={"D3_HOME": str(home)} | (env or {}),
            **settings,
        )
        found = problems(ended, may_fail=may_fail or name == "calibrate")
        for problem in (*found, *broken_files(home)):
            yield f"{name}: {problem}"
