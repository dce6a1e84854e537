"""The prompt of ``d3 chat`` while the model loads. Loading is held, so it ends when a test says."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.cli.chat.at_terminal import (
    CTRL_C,
    CTRL_D,
    PATIENT,
    STORY,
    StartChat,
    at_prompt,
    command,
    empty_line,
    figures,
    files,
    leave,
    saved,
    turn,
    write_conversation,
)
from tests.conftest import BUILTIN_PATH
from tests.terminal import Terminal

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX terminal")


@pytest.fixture
def loading(chat: StartChat) -> StartChat:
    """Starts chats whose model waits to be loaded, with the prompt there."""

    def start(*arguments: str | Path, **options: object) -> Terminal:
        terminal = chat(*arguments, hold_loading=True, **options)
        terminal.wait(terminal.child.is_held)
        return terminal

    return start


def send_first(terminal: Terminal, text: str) -> None:
    """Sends a message, and waits until the chat waits for the model."""
    terminal.line(text)
    terminal.wait("loading")
    terminal.wait(lambda: terminal.ctrl_c_is_a_signal and not terminal.echoes)


def with_a_broken_tokenizer(target: Path) -> Path:
    """A copy of the built-in model that fails once its tokenizer is read."""
    for file in BUILTIN_PATH.iterdir():
        if file.name != "schedule.json":
            shutil.copy(file, target)
    (target / "tokenizer.json").write_text("{}")
    return target


def test_a_message_that_was_sent_before_the_model_is_there_is_answered(
    loading: StartChat, home: Path
) -> None:
    terminal = loading("--max-tokens", "2")
    send_first(terminal, STORY)
    terminal.child.release()
    terminal.wait(lambda: figures(terminal) == 1)
    at_prompt(terminal)
    turn(terminal, "What is 3 + 4?")
    leave(terminal)
    assert [message["content"] for message in saved(home)][::2] == [STORY, "What is 3 + 4?"]


def test_each_enter_while_the_model_loads_ends_a_message(loading: StartChat, home: Path) -> None:
    terminal = loading("--max-tokens", "2")
    send_first(terminal, "quince")
    terminal.send("medlar\rthe third waits")
    terminal.child.release()
    terminal.wait(">>> the third waits")
    assert [message["content"] for message in saved(home)][::2] == ["quince", "medlar"]
    assert terminal.plain.count("medlar") == 1  # it is not shown beside the spinner
    empty_line(terminal)
    leave(terminal)


def test_commands_that_need_the_model_wait_for_it(loading: StartChat) -> None:
    terminal = loading()
    command(terminal, "/?", "To send a message that begins with a slash")
    send_first(terminal, "/show")
    terminal.child.release()
    terminal.wait("sampling greedy")
    at_prompt(terminal)
    leave(terminal)
    terminal = loading()
    terminal.line("/bye")
    assert terminal.end() == 0


def test_notes_stand_above_what_is_typed(loading: StartChat) -> None:
    terminal = loading("--alpha", "0.99", "--core-first", "2", columns=60)
    terminal.send("half a mess")
    terminal.wait(">>> half a mess")
    terminal.child.release()
    terminal.wait("depth: ")
    terminal.send("age")
    terminal.wait(">>> half a message")
    assert terminal.plain.index("model: ") < terminal.plain.index("depth: ")
    assert terminal.plain.index("depth: ") < terminal.plain.index(">>> half")
    assert terminal.plain.count(">>>") == 1
    empty_line(terminal)
    leave(terminal)


@pytest.mark.parametrize("sent", [False, True])
def test_a_model_that_fails_to_load_ends_the_chat(
    loading: StartChat, home: Path, tmp_path: Path, sent: bool
) -> None:
    terminal = loading(with_a_broken_tokenizer(tmp_path))
    if sent:
        send_first(terminal, "quince")
    else:
        terminal.send("quince")
        terminal.wait(">>> quince")
    terminal.child.release()
    assert terminal.end() == 1
    assert terminal.plain.count("error: ") == 1
    assert terminal.plain.index("quince") < terminal.plain.index("error: ")
    assert terminal.echoes
    assert ("quince" in (home / "chat-history").read_text()) == sent
    assert files(home) == []


def test_options_that_do_not_fit_the_model_end_the_chat(loading: StartChat) -> None:
    terminal = loading("--start", "5000")
    terminal.child.release()
    assert terminal.end() == 2
    assert "start is 5,000, beyond the model's context" in terminal.plain


def test_the_keys_that_leave(loading: StartChat, home: Path) -> None:
    terminal = loading()
    terminal.send(CTRL_D)
    assert terminal.end() == 0
    terminal = loading(constants=PATIENT)
    empty_line(terminal)
    terminal.send(CTRL_D)
    assert terminal.end() == 0
    assert terminal.echoes
    assert files(home) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_prompt_leaves(loading: StartChat, number: int) -> None:
    terminal = loading()
    terminal.child.kill(number)
    assert terminal.end() == 128 + number
    assert terminal.echoes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_message_waits_leaves_the_terminal_as_it_was(
    loading: StartChat, number: int
) -> None:
    terminal = loading()
    send_first(terminal, "quince")
    if number == signal.SIGINT:
        terminal.send(CTRL_C)
    else:
        terminal.child.kill(number)
    assert terminal.end() == 128 + number
    assert terminal.echoes
    assert terminal.raw.rfind("\x1b[?2004l") > terminal.raw.rfind("\x1b[?2004h")


def test_a_conversation_is_shown_before_its_model_is_there(loading: StartChat, home: Path) -> None:
    words = [("user", "one"), ("assistant", "two"), ("user", "three")]
    write_conversation(home, [{"role": role, "content": text} for role, text in words])
    terminal = loading("-c", "--max-tokens", "2", ready=">>> three")
    for text in ("2 messages so far", ">>> one", "two", "has no reply yet"):
        assert text in terminal.plain
    send_first(terminal, "")
    terminal.child.release()
    terminal.wait(lambda: figures(terminal) == 1)
    at_prompt(terminal)
    leave(terminal)
    assert [message["content"] for message in saved(home)][:3] == ["one", "two", "three"]
