"""``d3 chat`` on terminals of other kinds and sizes, and in a shell that suspends it."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.chat.at_terminal import (
    CTRL_C,
    CTRL_D,
    CTRL_Z,
    IMPATIENT,
    PATIENT,
    STORY,
    StartChat,
    at_prompt,
    begin_story,
    leave,
    times_shown,
)
from tests.terminal import Terminal
from tests.warm import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX terminal")


@pytest.mark.parametrize(
    "options",
    [{"columns": 20, "rows": 6}, {"columns": 300, "rows": 90}, {"TERM": "dumb"}, {"NO_COLOR": "1"}],
    ids=["narrow", "huge", "dumb", "no-color"],
)
def test_other_terminals(chat: StartChat, options: dict[str, Any]) -> None:
    terminal = chat("--plain", "--no-stats", **options)
    terminal.line("What is 27 + 45?")
    terminal.wait("answer is 72.")
    at_prompt(terminal)
    assert "tok/s" not in terminal.plain
    if "NO_COLOR" in options:
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", terminal.raw)
    leave(terminal)


TERM, HUP = (signal.SIGTERM, 143), (signal.SIGHUP, 129)


@pytest.mark.parametrize(
    ("options", "number", "code"),
    [
        ({"TERM": "dumb"}, *TERM),
        ({"TERM": "unknown"}, *HUP),
        ({"TERM": ""}, *TERM),
        ({"TERM": "xterm", "INSIDE_EMACS": "29.1,comint"}, *HUP),
        ({"TERM": "dumb", "NO_COLOR": "1", "CI": "true"}, *TERM),
    ],
    ids=["dumb", "unknown", "unset", "emacs", "ci"],
)
def test_a_terminal_without_escape_sequences_receives_none(
    chat: StartChat, options: dict[str, str], number: int, code: int
) -> None:
    terminal = chat("--max-tokens", "5", constants=PATIENT, **options)
    terminal.line("What is 27 + 45?")
    terminal.wait("tokens ·")
    at_prompt(terminal)
    terminal.line('"""one')
    terminal.wait("...")
    terminal.send(CTRL_C)
    terminal.wait("Ctrl-D or /bye leaves")
    at_prompt(terminal)
    terminal.line("/undo")
    terminal.wait("an empty line takes this text")
    at_prompt(terminal)
    terminal.child.kill(number)
    assert terminal.end() == code
    assert "\x1b" not in terminal.raw


def test_ctrl_c_and_ctrl_d_leave_a_dumb_terminal_as_any(chat: StartChat) -> None:
    terminal = chat(constants=IMPATIENT, hold_at=4, TERM="dumb")
    begin_story(terminal)
    terminal.send(CTRL_C)
    terminal.wait("stopped: interrupted")
    at_prompt(terminal)
    terminal.send(CTRL_C)  # at once after the other
    assert terminal.end() == 130
    terminal = chat(TERM="dumb")
    terminal.send(CTRL_C)
    terminal.wait("Ctrl-D or /bye leaves")
    at_prompt(terminal)
    leave(terminal)


def test_a_reply_in_markdown_is_drawn_once(chat: StartChat) -> None:
    terminal = chat("--max-tokens", "40", rows=8)
    terminal.line(STORY)
    terminal.wait("byte ratio")
    at_prompt(terminal)
    assert times_shown(terminal) == 1
    leave(terminal)


HELD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.warm import hold
hold(12, Path({folder!r}))
sys.argv = ["d3", "chat", "--threads", "1", "--dtype", "float32", "--max-tokens", "40"]
from d3cli.__main__ import main
main()
"""


@pytest.mark.slow
def test_resized_and_suspended(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "d3.py"
    script.write_text(HELD.format(root=str(ROOT), folder=str(tmp_path)))
    shell = Terminal("--norc", "-i", home=home, program="/bin/bash", PS1="sh> ")
    try:
        shell.line(f"{sys.executable} {script}")
        shell.wait(">>>")
        at_prompt(shell)
        shell.line(STORY)
        shell.wait((tmp_path / "held").exists)
        shell.send(CTRL_Z)
        shell.wait("Stopped")
        shell.resize(50, 15)
        shell.line('echo still "here"; fg')  # a shell that draws its line again shows it twice
        shell.wait("still here")
        (tmp_path / "released").touch()
        shell.wait("40 tokens ·")
        at_prompt(shell)
        shell.send(CTRL_Z)
        shell.wait(lambda: shell.text.endswith("sh>"))
        shell.line("fg")
        shell.wait(lambda: not shell.ctrl_c_is_a_signal)  # the prompt has its keys again
        shell.line("/show")
        shell.wait("saved")
        at_prompt(shell)
        shell.send(CTRL_D)
        shell.wait(lambda: shell.text.endswith("sh>"))
        shell.line("stty -a | tr ' ' '\\n' | grep echo$")
        shell.wait(lambda: shell.text.split("\n")[-2] == "echo")  # it left the terminal as it was
    finally:
        shell.close()
