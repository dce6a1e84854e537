"""Measures how long ``d3 chat -c`` takes to resume a long conversation, at a terminal.

    python scripts/bench_resume.py
    python scripts/bench_resume.py --messages 20000

Starts new and resumed conversations alternately. For each it prints the seconds from the command to
the prompt, and from Enter to the end of a reply of one token (with the oldest turns left out).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.terminal import Terminal

CHAT = ("-m", "d3cli", "chat", "--max-tokens", "1", "--on-overflow", "drop-oldest", "--no-save")


def save(home: Path, messages: int) -> None:
    """Writes a conversation of `count` messages of about 50 words each."""
    (home / "conversations").mkdir(parents=True)
    path = home / "conversations" / "20260101-000000-aaaa.jsonl"
    with path.open("w") as file:
        for number in range(messages):
            role = ("user", "assistant")[number % 2]
            content = f"number {number // 2}: {'word ' * 50}"
            file.write(json.dumps({"schema": 1, "role": role, "content": content}) + "\n")


def seconds(terminal: Terminal, shown: str | Callable[[], bool]) -> float:
    """Seconds until this is on the screen."""
    began = time.perf_counter()
    terminal.wait(shown, 120)
    return time.perf_counter() - began


def start(home: Path, *arguments: str) -> tuple[float, float]:
    """One chat: seconds to the prompt, and to the end of its first reply."""
    terminal = Terminal(*CHAT, *arguments, home=home, columns=120)
    try:
        to_prompt = seconds(terminal, lambda: terminal.text.split("\n")[-1].startswith(">>>"))
        terminal.line("Hello?")
        return to_prompt, seconds(terminal, "1 token ·")
    finally:
        terminal.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        save(home, asked.messages)
        start(home)  # warms up: files are then in the page cache
        new, resumed = [], []
        for _ in range(asked.rounds):
            new.append(start(home))
            resumed.append(start(home, "-c"))
    for name, times in (("new", new), (f"{asked.messages:,} messages", resumed)):
        to_prompt, to_reply = zip(*times, strict=True)
        print(
            f"{name:<20} prompt after {median(to_prompt):.2f} s "
            f"({min(to_prompt):.2f} to {max(to_prompt):.2f}), "
            f"reply after {median(to_reply):.2f} s ({min(to_reply):.2f} to {max(to_reply):.2f})"
        )


if __name__ == "__main__":
    main()
