"""What is typed and pasted into ``d3 chat``: several lines, an editor, completion, typing ahead."""

import os
from pathlib import Path

import pytest

from tests.cli.chat.at_terminal import (
    CTRL_C,
    CTRL_D,
    CTRL_G,
    CTRL_J,
    ESCAPE,
    PATIENT,
    STORY,
    UP,
    StartChat,
    at_prompt,
    begin_story,
    empty_line,
    figures,
    files,
    leave,
    saved,
    turn,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX terminal")


def test_several_lines(chat: StartChat, home: Path) -> None:
    terminal = chat("--max-tokens", "1")
    terminal.send(f"one{CTRL_J}two{ESCAPE}\rthree\r")
    terminal.wait("1 token ·")
    at_prompt(terminal)
    terminal.send('"""four\r')
    terminal.wait("...")
    terminal.send('five"""\r')
    terminal.wait(lambda: figures(terminal) == 2)
    at_prompt(terminal)
    leave(terminal)
    assert [m["content"] for m in saved(home) if m["role"] == "user"] == [
        "one\ntwo\nthree",
        "four\nfive",
    ]


def test_an_editor(chat: StartChat, home: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "from the editor" >> "$1"\n')
    editor.chmod(0o700)
    terminal = chat("--max-tokens", "1", EDITOR=str(editor), VISUAL=str(editor))
    terminal.send(CTRL_G)
    terminal.wait(">>> from the editor")
    turn(terminal, "")
    leave(terminal)
    assert saved(home)[0]["content"] == "from the editor"


def test_completion(chat: StartChat) -> None:
    terminal = chat()
    terminal.send("/comp\t")
    terminal.wait(">>> /compare")
    empty_line(terminal)
    terminal.send("/set on-o\t\t")
    terminal.wait(">>> /set on-overflow")
    empty_line(terminal)
    leave(terminal)


def test_history_and_the_keys_of_vi(chat: StartChat, home: Path) -> None:
    home.mkdir()
    (home / "chat-history").write_text("\n# 2026-01-01 00:00:00.000000\n+from the editor\n")
    terminal = chat("--max-tokens", "1", "--keys", "vi")
    terminal.send(UP)
    terminal.wait(">>> from the editor")
    column = terminal.screen.cursor.x
    terminal.send(ESCAPE)
    terminal.wait(lambda: terminal.screen.cursor.x < column)  # the cursor steps back: no insert
    terminal.send("0dwiFar \r")
    terminal.wait("1 token ·")
    at_prompt(terminal)
    leave(terminal)
    assert saved(home)[0]["content"] == "Far the editor"


def test_what_is_typed_during_a_reply_is_sent_after_it(chat: StartChat, home: Path) -> None:
    terminal = chat("--max-tokens", "20", hold_at=12)
    begin_story(terminal)
    terminal.line("What is 27 + 45?")
    terminal.child.release()
    terminal.wait(lambda: figures(terminal) == 2)
    at_prompt(terminal)
    leave(terminal)
    assert [message["content"] for message in saved(home)][::2] == [STORY, "What is 27 + 45?"]


def test_what_is_typed_during_a_reply_waits_at_the_prompt(chat: StartChat) -> None:
    terminal = chat("--max-tokens", "20", hold_at=12)
    begin_story(terminal)
    terminal.send("typed ahead")
    terminal.child.release()
    terminal.wait("byte ratio")
    terminal.wait(">>> typed ahead")
    assert terminal.plain.count("typed ahead") == 1
    empty_line(terminal)
    leave(terminal)


def test_ctrl_d_before_the_prompt_is_back_leaves(chat: StartChat) -> None:
    terminal = chat("--max-tokens", "20", hold_at=12)
    begin_story(terminal)
    terminal.send(CTRL_D)
    terminal.child.release()
    assert terminal.end() == 0
    assert "byte ratio" in terminal.plain  # the reply was written to its end first


@pytest.mark.parametrize("length", [1022, 1023])  # a terminal is read by 1,024 bytes
def test_each_enter_during_a_reply_ends_a_message(chat: StartChat, home: Path, length: int) -> None:
    terminal = chat("--max-tokens", "20", hold_at=12)
    begin_story(terminal)
    text = ("fox, " * 300)[:length]
    terminal.line(f"{text}\rand the end")
    terminal.child.release()
    terminal.wait(lambda: figures(terminal) == 3)
    at_prompt(terminal)
    leave(terminal)
    assert [message["content"] for message in saved(home)][2::2] == [text, "and the end"]


def test_a_paste_during_a_reply_is_one_message(chat: StartChat, home: Path) -> None:
    terminal = chat("--max-tokens", "20", hold_at=12)
    begin_story(terminal)
    terminal.paste("one\ntwo")
    terminal.line(" three")
    terminal.child.release()
    terminal.wait(lambda: figures(terminal) == 2)
    at_prompt(terminal)
    leave(terminal)
    assert saved(home)[2]["content"] == "one\ntwo three"


def test_ctrl_c_forgets_what_was_typed_for_later_prompts(chat: StartChat, home: Path) -> None:
    terminal = chat("--max-tokens", "20", hold_at=12, constants=PATIENT)
    terminal.line(f"/alpha\r{STORY}\rnever sent")
    terminal.wait(terminal.child.is_held)
    terminal.send(CTRL_C)
    terminal.wait("stopped: interrupted")
    at_prompt(terminal)
    leave(terminal)
    assert [message["content"] for message in saved(home)][::2] == [STORY]


@pytest.mark.parametrize("lines", [500, pytest.param(110_000, marks=pytest.mark.slow)])
def test_a_paste_of_many_lines(chat: StartChat, home: Path, lines: int) -> None:
    terminal = chat("--max-tokens", "1", "--on-overflow", "drop-oldest")
    pasted = "\n".join(f"{number} é" for number in range(lines))  # a megabyte, at most
    last = pasted.rpartition("\n")[2]
    terminal.paste(pasted)
    terminal.wait(last)
    terminal.send("\r")
    terminal.wait("more than the model's context of 1,024 leaves room for")
    terminal.wait(lambda: terminal.plain.count(last) == 2)  # it is at the prompt again
    assert files(home) == []
    terminal.send(CTRL_C)
    terminal.wait("Ctrl-D or /bye leaves")
    at_prompt(terminal)
    short = "\n".join(f"{number}" for number in range(100))
    terminal.paste(short)
    terminal.wait("... 99")
    terminal.send("\r")
    terminal.wait("1 token ·")
    at_prompt(terminal)
    leave(terminal)
    assert saved(home)[0]["content"] == short
