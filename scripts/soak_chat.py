"""One `d3 chat` that is talked to for hours, for ``scripts/soak.py``."""

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from soak_work import Job

from tests.cli.chat.at_terminal import command, leave, turn
from tests.terminal import Terminal

LOOKS = ("/compare", "/stats", "/depth", "/show", "/lossless")  # commands that change nothing


class SoakedChat:
    """A chat at a terminal of its own.

    Args:
        home: where it keeps its conversations.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        words = ["-m", "d3cli", "chat", "--dtype", "float32", "--threads", "1"]
        self._terminal = Terminal(*words, home=home, rows=40, D3_KERNELS="auto")
        self._terminal.wait(">>>")
        self._terminal.wait(lambda: self._terminal.takes_keys)
        self.pid: int = self._terminal.child.pid

    def talk(self, rng: random.Random, job: Job) -> list[str]:
        """Has the conversation of a `replies` job; returns the replies that were saved.

        Between the turns it looks at this and that, and writes the last reply twice.
        """
        terminal = self._terminal
        command(terminal, "/clear", "a new conversation")
        self._set(f"/lossless {job['lossless'] or 'off'}")
        for one in job["turns"]:
            self._set(f"/alpha {one['alpha']}")
            self._set(f"/set temperature {one['temperature']}")
            self._set(f"/set seed {one['seed']}")
            self._set(f"/set max-tokens {one['max_tokens']}")
            turn(terminal, one["text"])
            if rng.random() < 0.3:
                self._set(rng.choice(LOOKS))
        self._set("/regen")  # the same seed, so the same reply
        terminal.screen.history.top.clear()
        terminal.raw = ""
        saved = (self._home / "conversations").glob("*.jsonl")
        newest = max(saved, key=lambda path: path.stat().st_mtime)
        messages = [json.loads(line) for line in newest.read_text().splitlines()]
        return [one["content"] for one in messages if one["role"] == "assistant"]

    def _set(self, text: str) -> None:
        """Gives a command and waits for the next prompt."""
        prompts = self._terminal.text.count(">>>")
        self._terminal.line(text)
        self._terminal.wait(
            lambda: self._terminal.text.count(">>>") > prompts and self._terminal.takes_keys
        )

    def end(self) -> None:
        leave(self._terminal)
