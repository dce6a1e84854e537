"""What a user does at the terminal of a chat. Every step waits for what the screen then shows."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.terminal import HANGS, Terminal

STORY = "Tell me a story about a fox."
CTRL_C, CTRL_D, CTRL_G, CTRL_J, CTRL_Z = "\x03", "\x04", "\x07", "\n", "\x1a"
ESCAPE, UP = "\x1b", "\x1b[A"
# How long after a Ctrl-C the next one leaves: never, or always.
AT_ONCE = "d3cli.cli.chat.keyboard:AT_ONCE"
PATIENT, IMPATIENT = {AT_ONCE: 0.0}, {AT_ONCE: 1e9}
StartChat = Callable[..., Terminal]


def turn(terminal: Terminal, text: str) -> None:
    """Says something and waits for the figures after the reply."""
    before = figures(terminal)
    terminal.line(text)
    terminal.wait(lambda: figures(terminal) > before)
    at_prompt(terminal)


def begin_story(terminal: Terminal) -> None:
    """Asks for a story and waits until it is held, at the step that `hold_at` says."""
    terminal.line(STORY)
    terminal.wait(terminal.child.is_held)
    terminal.wait(lambda: len(story(terminal).split()) > 3)


def story(terminal: Terminal) -> str:
    """What is shown after the story was asked for."""
    return terminal.plain.rpartition(STORY)[2].strip()


def times_shown(terminal: Terminal) -> int:
    """How often the first words of the story are shown."""
    words = " ".join(story(terminal).split()[:4])
    assert words
    return terminal.plain.count(words)


def figures(terminal: Terminal) -> int:
    """How many replies have shown their figures."""
    return len(re.findall(r"\d+ tokens? ·", terminal.plain))


def at_prompt(terminal: Terminal) -> None:
    """Waits for a prompt that takes keys; before it does, Enter would be a new line."""
    terminal.wait(lambda: terminal.text.split("\n")[-1].startswith(">>>") and terminal.takes_keys)


def command(terminal: Terminal, text: str, answer: str) -> None:
    """Gives a command and waits for its answer below it."""
    count = terminal.plain.count(answer)
    terminal.line(text)
    terminal.wait(lambda: terminal.plain.count(answer) > count)
    at_prompt(terminal)


def leave(terminal: Terminal) -> None:
    terminal.send(CTRL_D)
    assert terminal.end() == 0


def empty_line(terminal: Terminal) -> None:
    """Gives up what is typed."""
    count = terminal.plain.count("Ctrl-D or /bye leaves")

    def is_given_up() -> bool:
        return terminal.plain.count("Ctrl-D or /bye leaves") > count

    for _ in range(4):  # a key between a reply and the prompt may be lost: one presses it again
        terminal.send(CTRL_C)
        with suppress(AssertionError):
            terminal.wait(is_given_up, HANGS / 6)
            break
    assert is_given_up(), terminal.text
    terminal.wait(lambda: terminal.text.split("\n")[-1] == ">>>")


def saved(home: Path) -> list[dict[str, Any]]:
    """The messages of the only conversation there is."""
    [path] = files(home)
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(home: Path) -> list[Path]:
    """The saved conversations."""
    return list((home / "conversations").glob("*.jsonl"))


def write_conversation(home: Path, messages: Sequence[dict[str, Any]]) -> None:
    """Saves a conversation, as a d3 before this one would have."""
    (home / "conversations").mkdir(parents=True)
    path = home / "conversations" / "20260101-000000-aaaa.jsonl"
    path.write_text("".join(json.dumps({"schema": 1} | one) + "\n" for one in messages))
