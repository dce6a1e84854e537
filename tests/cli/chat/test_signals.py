"""Ctrl-C, SIGTERM, SIGHUP and a terminal that goes, while ``d3 chat`` writes and while it waits.

Replies are held at a decode step, so that a signal finds them there on any machine.
"""

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from d3cli.cli import signals
from d3cli.cli.chat.loop import ChatLoop
from d3cli.decode.session import Engine
from d3cli.model.model import LoadedModel
from tests.cli.chat.at_terminal import (
    CTRL_C,
    IMPATIENT,
    PATIENT,
    STORY,
    StartChat,
    at_prompt,
    begin_story,
    command,
    empty_line,
    leave,
    saved,
    turn,
)
from tests.conftest import BUILTIN_PATH
from tests.terminal import HANGS, Terminal

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX terminal")


def test_ctrl_c_stops_a_reply_and_keeps_it(chat: StartChat, home: Path) -> None:
    terminal = chat("--max-tokens", "20", hold_at=12, constants=PATIENT)
    begin_story(terminal)
    terminal.send(CTRL_C)
    terminal.wait("stopped: interrupted")
    at_prompt(terminal)
    reply = saved(home)[-1]
    assert reply["finish_reason"] == "interrupted"
    assert reply["stats"]["completion_tokens"] == 12
    turn(terminal, "What is 3 + 4?")
    terminal.send(CTRL_C)  # at the prompt
    terminal.wait("Ctrl-D or /bye leaves")
    leave(terminal)
    assert [message["role"] for message in saved(home)] == ["user", "assistant"] * 2


def test_ctrl_c_just_after_a_reply_is_for_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_arrived", [])

    def late(*_: int) -> None:
        signal.raise_signal(signal.SIGINT)

    chat, keyboard = Mock(draft=""), Mock()
    keyboard.leave_after.side_effect = late
    chat.read_ahead.side_effect = late
    keyboard.read.side_effect = [" ", 7]
    handler = signal.getsignal(signal.SIGINT)
    try:
        signals.stop_once()
        with Path(os.devnull).open() as nothing:
            monkeypatch.setattr("sys.stdin", nothing)
            assert ChatLoop(chat, keyboard).run() == 7
        assert signals.take() == (signal.SIGINT,) * 2
    finally:
        signals._handle(handler)


@pytest.mark.slow
def test_ctrl_c_at_any_moment_keeps_the_conversation(
    chat: StartChat, home: Path, model: LoadedModel
) -> None:
    terminal = chat("--max-tokens", "60", constants=PATIENT)  # so that the context never fills
    command(terminal, "/system", "no system prompt")  # while the model loads, Ctrl-C leaves
    moments = random.Random(7)
    for _ in range(8):
        prompts = terminal.text.count(">>>")
        terminal.line(STORY)
        terminal.read(moments.uniform(0.0, 0.5))
        terminal.send(CTRL_C)
        terminal.wait(lambda: terminal.text.count(">>>") > prompts)  # noqa: B023
        at_prompt(terminal)
        empty_line(terminal)  # a message that got no reply is at the prompt again
    command(terminal, "/set max-tokens 8", "max-tokens is now 8")
    turn(terminal, "What is 3 + 4?")
    leave(terminal)
    messages = saved(home)
    assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
    shown: list[dict[str, str]] = []
    for message in messages:
        if message["role"] == "assistant":
            reply = Engine(model).stream(shown, max_tokens=message["stats"]["completion_tokens"])
            list(reply)
            assert reply.text.removesuffix("\ufffd") == message["content"]
        shown.append({"role": message["role"], "content": message["content"]})


@pytest.mark.parametrize("when", ["before the prompt", "at the prompt"])
def test_a_second_ctrl_c_at_once_leaves(when: str, chat: StartChat, home: Path) -> None:
    terminal = chat(hold_at=12, constants=IMPATIENT)
    begin_story(terminal)
    terminal.send(CTRL_C)
    terminal.wait("stopped: interrupted")  # two that wait together would be one signal
    if when == "at the prompt":
        at_prompt(terminal)
    press_until_it_ends(terminal)
    assert terminal.end() == 130
    assert saved(home)[-1]["finish_reason"] == "interrupted"


def press_until_it_ends(terminal: Terminal) -> None:
    """Presses Ctrl-C, and again as a user would if one is lost between the reply and the prompt."""
    for _ in range(4):
        terminal.send(CTRL_C)
        with suppress(AssertionError):
            terminal.end(HANGS / 6)
            return


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["term", "hup"]
)
def test_a_signal_saves_and_leaves(chat: StartChat, home: Path, number: int, code: int) -> None:
    terminal = chat(hold_at=12)
    begin_story(terminal)
    terminal.child.kill(number)
    assert terminal.end() == code
    reply = saved(home)[-1]
    assert reply["finish_reason"] == "interrupted"
    assert " ".join(str(reply["content"]).split()) in terminal.plain
    terminal = chat("-c")
    assert "2 messages so far" in terminal.plain
    terminal.child.kill(number)  # at the prompt
    assert terminal.end() == code


def test_a_closed_terminal_saves_first(chat: StartChat, home: Path) -> None:
    terminal = chat(hold_at=12)
    begin_story(terminal)
    os.close(terminal.child.child_fd)
    deadline = time.monotonic() + HANGS
    while terminal.child.isalive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not terminal.child.isalive()
    assert saved(home)[-1]["finish_reason"] == "interrupted"


def test_ctrl_c_ends_a_template_that_takes_its_time(chat: StartChat, tmp_path: Path) -> None:
    for file in BUILTIN_PATH.iterdir():
        if file.name not in ("schedule.json", "chat_template.jinja"):
            shutil.copy(file, tmp_path)
    loops = "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2
    slow = "{{ messages[0].content }}{% if 'so' in messages[0].content %}" + loops + "{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(slow)
    # At its limit the template would end with an error instead.
    no_limit = {"d3cli.text.renderer:RENDER_LIMIT": HANGS}
    terminal = chat(tmp_path, columns=160, constants=PATIENT | no_limit)
    command(terminal, "/system", "no system prompt")  # while the model loads, Ctrl-C leaves
    terminal.line("Hello so.")
    terminal.wait(lambda: terminal.screen.cursor.x == 0 and terminal.ctrl_c_is_a_signal)
    terminal.send(CTRL_C)
    terminal.wait(lambda: terminal.plain.count(">>> Hello so.") == 2)  # it is at the prompt again
    assert "error" not in terminal.plain
    assert "^C" not in terminal.text
    terminal.send(CTRL_C)
    terminal.wait("Ctrl-D or /bye leaves")
    leave(terminal)
