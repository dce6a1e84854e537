"""``d3 chat`` at a terminal: conversations that begin, end, go on and are kept."""

import os
import shutil
import signal
import stat
from pathlib import Path

import pytest

from d3cli.decode.session import Engine
from d3cli.model.model import LoadedModel
from tests.cli.chat.at_terminal import (
    CTRL_J,
    STORY,
    StartChat,
    at_prompt,
    begin_story,
    command,
    files,
    leave,
    saved,
    times_shown,
    turn,
    write_conversation,
)
from tests.conftest import BUILTIN_PATH, hub_repository
from tests.terminal import Terminal
from tests.warm import Warm

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX terminal")


def check_replies(
    home: Path, model: LoadedModel, terminal: Terminal, most: int | None = None
) -> None:
    """Each saved reply is what a fresh process would have written."""
    shown: list[dict[str, str]] = []
    for message in saved(home):
        if message["role"] == "assistant":
            reply = Engine(model).stream(shown, max_tokens=most)
            list(reply)
            assert message["content"] == reply.text
            assert message["finish_reason"] == reply.finish_reason
            assert message["schedule"] == reply.schedule.to_json() | {"source": "shipped"}
            assert message["stats"]["completion_tokens"] == len(reply.tokens)
            assert reply.text.split()[-1] in terminal.plain
        shown.append({"role": message["role"], "content": message["content"]})


def test_a_conversation_of_two_turns(chat: StartChat, home: Path, model: LoadedModel) -> None:
    terminal = chat("--system", "Be brief.", "--max-tokens", "40")
    turn(terminal, STORY)
    terminal.wait("agreement with full depth")  # found while the user types
    turn(terminal, "What is 27 + 45?")
    leave(terminal)
    assert [message["role"] for message in saved(home)] == ["system", *["user", "assistant"] * 2]
    check_replies(home, model, terminal, 40)
    for file in (*files(home), home / "chat-history"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "What is 27 + 45?" in (home / "chat-history").read_text()


@pytest.mark.slow
def test_a_conversation_of_three_turns_in_a_process_of_its_own(
    home: Path, model: LoadedModel
) -> None:
    words = ["-m", "d3cli", "chat", "--dtype", "float32", "--threads", "1", "--system", "Be brief."]
    terminal = Terminal(*words, "--max-tokens", "40", home=home)
    try:
        terminal.wait(">>>")
        for text in ("What is 27 + 45?", STORY, "What is 3 + 4?"):
            turn(terminal, text)
        leave(terminal)
    finally:
        terminal.close()
    check_replies(home, model, terminal, 40)


def test_resume_after_a_kill(chat: StartChat, home: Path) -> None:
    terminal = chat("--alpha", "off", "--max-tokens", "5")
    turn(terminal, "What is 27 + 45?")
    leave(terminal)
    first = saved(home)
    terminal = chat("-c", "--alpha", "off", "--plain", hold_at=12)
    assert "2 messages so far" in terminal.plain
    begin_story(terminal)
    terminal.child.kill(signal.SIGKILL)
    assert terminal.end() == 128 + signal.SIGKILL
    messages = saved(home)
    assert messages[:2] == first
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    terminal = chat("-c", "--max-tokens", "5", ready="has no reply yet")
    terminal.wait(f">>> {STORY}")
    assert str(first[1]["content"]).strip() in terminal.plain
    turn(terminal, "")  # Enter alone: the message is at the prompt
    leave(terminal)
    assert [message["role"] for message in saved(home)] == ["user", "assistant"] * 2


def test_a_last_line_that_is_cut_off_is_left_out_and_kept(chat: StartChat, home: Path) -> None:
    said = [("user", "Hello."), ("assistant", "Hi."), ("user", STORY), ("assistant", "Once")]
    write_conversation(home, [{"role": role, "content": content} for role, content in said])
    [path] = files(home)
    damaged = path.read_bytes()[:-9]
    path.write_bytes(damaged)
    terminal = chat("-c", "--max-tokens", "2", columns=200, ready="has no reply yet")
    assert "is incomplete and was left out" in terminal.plain
    copy = path.with_name(f"{path.name}.damaged")
    assert copy.read_bytes() == damaged
    terminal.wait(f">>> {STORY}")
    turn(terminal, "")
    leave(terminal)
    assert [message["role"] for message in saved(home)] == ["user", "assistant"] * 2
    assert copy.read_bytes() == damaged


def test_another_model(chat: StartChat, tmp_path: Path) -> None:
    shutil.copytree(BUILTIN_PATH, tmp_path / "other")
    terminal = chat("--max-tokens", "2")
    turn(terminal, "Hello.")
    command(terminal, f"/model {tmp_path / 'other'}", "this model is not calibrated")
    assert "may find something faster" in terminal.plain
    turn(terminal, "Hello.")
    leave(terminal)


def test_one_conversation_is_open_once(chat: StartChat, home: Path, warm: Warm) -> None:
    terminal = chat("--max-tokens", "2")
    turn(terminal, "Hello.")
    other = Terminal("chat", "-c", home=home, columns=120, warm=warm)
    assert other.end() == 2
    assert "is open in another d3 chat" in other.plain
    leave(terminal)


def test_nothing_is_kept_where_nobody_wants_it(chat: StartChat, home: Path) -> None:
    terminal = chat("--no-save", "--max-tokens", "2")
    turn(terminal, "Hello.")
    command(terminal, "/show", "saved no")
    command(terminal, f"/save{CTRL_J}/bye", "/save takes one line")
    leave(terminal)
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_resumed_conversation_keeps_its_system_prompt(chat: StartChat, home: Path) -> None:
    messages = [
        {"role": "system", "content": "Its own."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi.", "model": "demo"},
    ]
    write_conversation(home, messages)
    (home / "config.toml").write_text('system = "From the config."\nkeys = "vi"\n')
    for arguments, prompt in (
        (["-c"], "Its own."),
        (["-c", "--system", "Another."], "Another."),
        ([], "From the config."),
    ):
        terminal = chat(*arguments)
        command(terminal, "/system", f"system prompt: {prompt}")
        leave(terminal)


def test_a_conversation_of_2000_messages(chat: StartChat, home: Path) -> None:
    said = [f"number {number // 2}: {'word ' * 50}" for number in range(2000)]
    write_conversation(
        home,
        [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)],
    )
    terminal = chat("-c", "--max-tokens", "5", "--on-overflow", "drop-oldest", columns=120)
    terminal.line("Hello?")
    terminal.wait('no longer shown to the model: "number 0: word')
    terminal.wait("5 tokens ·")
    at_prompt(terminal)
    leave(terminal)
    found = [message["content"] for message in saved(home)]
    assert len(found) == 2002
    assert found[:2001] == [*said, "Hello?"]


def test_a_directory_that_cannot_be_written_does_not_end_a_chat(
    chat: StartChat, home: Path
) -> None:
    (home / "chat-history").mkdir(parents=True)
    (home / "conversations").write_text("a file, not a directory")
    terminal = chat("--max-tokens", "2", columns=160)
    assert "the input history is not saved" in terminal.plain
    turn(terminal, "Hello.")
    assert "cannot be saved" in terminal.plain.split("2 tokens ·")[1]  # below the reply
    leave(terminal)


def test_a_full_disk_does_not_garble_the_reply(home: Path, warm: Warm) -> None:
    terminal = Terminal(
        *("chat", "--threads", "1", "--dtype", "float32", "--plain", "--max-tokens", "40"),
        home=home,
        columns=100,
        warm=warm,
        largest_file=400,
    )
    try:
        terminal.wait(">>>")
        turn(terminal, STORY)
        assert "cannot be saved" in terminal.plain
        assert times_shown(terminal) == 1
        assert len(saved(home)) == 1
        leave(terminal)
    finally:
        terminal.close()


def test_a_conversation_goes_on_with_the_revision_that_was_asked_for(
    chat: StartChat, home: Path
) -> None:
    with hub_repository("someone/fox") as snapshot:
        (snapshot.parents[1] / "refs" / "v1").write_text(snapshot.name)
        first = chat("someone/fox", "--revision", "v1", "--offline", "--max-tokens", "5")
        turn(first, STORY)
        leave(first)
        assert [m.get("revision") for m in saved(home)] == [None, "v1"]
        again = chat("-c", "--offline", "--max-tokens", "5")
        assert "model: someone/fox at v1" in again.plain
        turn(again, "And then?")
        leave(again)
        assert [m.get("revision") for m in saved(home)] == [None, "v1"] * 2
        other = chat("someone/fox", "-c", "--offline", "--max-tokens", "5")
        assert "at v1" not in other.plain
        turn(other, "And then?")
        leave(other)
        assert [m.get("revision") for m in saved(home)] == [*[None, "v1"] * 2, None, None]
