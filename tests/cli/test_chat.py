"""``d3 chat`` in a terminal, as a user would."""

import json
import os
import random
import re
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from d3cli.cli.chat.markdown import reply_console
from d3cli.cli.chat.saving import Saving
from d3cli.cli.chat.screen import Screen
from d3cli.cli.chat.settings import ChatSettings
from d3cli.cli.chat.writer import Replies
from d3cli.cli.output import Output
from d3cli.decode import transcript
from d3cli.decode.conversation import Conversation, ReplyOptions
from d3cli.decode.loop import decode_step
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.model.load import load_model
from tests.conftest import BUILTIN_PATH, D3, check
from tests.terminal import Terminal

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX terminal")

STORY = "Tell me a story about a fox."
CTRL_C, CTRL_D, CTRL_G, CTRL_J, CTRL_Z = "\x03", "\x04", "\x07", "\n", "\x1a"
ESCAPE, UP = "\x1b", "\x1b[A"
Chat = Callable[..., Terminal]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def chat(home: Path) -> Iterator[Chat]:
    """Starts chats at their prompt, and ends them."""
    started = []

    def start(*arguments: str | Path, ready: str = ">>>", **options: object) -> Terminal:
        words = ["-m", "d3cli", "chat", "--dtype", "float32", "--threads", "1", *arguments]
        terminal = Terminal(*words, home=home, **options)  # type: ignore[arg-type]
        started.append(terminal)
        terminal.wait(ready)
        terminal.read(0.3)
        return terminal

    yield start
    for terminal in started:
        terminal.close()


def turn(terminal: Terminal, text: str) -> None:
    """Says something and waits for the figures after the reply."""
    before = len(re.findall(r"\d+ tokens? ·", terminal.plain))
    terminal.line(text)
    terminal.wait(lambda: len(re.findall(r"\d+ tokens? ·", terminal.plain)) > before)
    at_prompt(terminal)


def at_prompt(terminal: Terminal) -> None:
    terminal.wait(lambda: terminal.text.split("\n")[-1].startswith(">>>"))


def command(terminal: Terminal, text: str, answer: str) -> None:
    """Gives a command and waits for its answer below it."""
    count = terminal.plain.count(answer)
    terminal.line(text)
    terminal.wait(lambda: terminal.plain.count(answer) > count)
    at_prompt(terminal)


def leave(terminal: Terminal) -> None:
    terminal.send(CTRL_D)
    assert terminal.end() == 0


def saved(home: Path) -> list[dict[str, object]]:
    """The messages of the only conversation there is."""
    [path] = (home / "conversations").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_conversation_of_three_turns(chat: Chat, home: Path) -> None:
    terminal = chat("--system", "Be brief.")
    for text in ("What is 27 + 45?", STORY, "What is 3 + 4?"):
        turn(terminal, text)
    terminal.wait("agreement with full depth")
    leave(terminal)
    messages = saved(home)
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3]
    model, shown = load_model(dtype="float32", device="cpu"), []
    for message in messages:  # each reply is that of a fresh process
        if message["role"] == "assistant":
            reply = Engine(model).stream(shown)
            list(reply)
            assert message["content"] == reply.text
            assert message["finish_reason"] == "stop"
            assert message["schedule"] == reply.schedule.to_json() | {"source": "shipped"}
            assert message["stats"]["completion_tokens"] == len(reply.tokens)
            assert reply.text.split()[-1] in terminal.plain
        shown.append({"role": message["role"], "content": message["content"]})
    [path] = (home / "conversations").glob("*.jsonl")
    for file in (path, home / "chat-history"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "What is 27 + 45?" in (home / "chat-history").read_text()


def test_depth_is_a_dial(chat: Chat, home: Path) -> None:
    terminal = chat()
    command(terminal, "/depth", "down to 9 of 16 layers (ships with this model)")
    for early in ("/compare", "/regen", "/undo", "/stats", "/save"):
        command(terminal, early, "say something first")
    command(terminal, "/alpha 0.9", "depth: alpha 0.9 from token 16")
    turn(terminal, STORY)
    command(terminal, "/depth", "o: the last reply")
    command(terminal, "/compare", "by the clock, 6 steps timed")
    assert re.search(r"agreement +9\d\.\d% of \d+ tokens below full depth", terminal.text)
    command(terminal, "/stats", "all replies 1:")
    command(terminal, "/regen alpha off", "the two first differ at token")
    assert "layers mean 16.0, min 16 of 16" in terminal.plain
    command(terminal, "/compare", "so there is nothing to compare")
    command(terminal, "/alpha off", "depth: full, all 16 layers")
    command(terminal, "/regen", "tokens as before")
    command(terminal, "/regen alpha 2", "alpha is 2, outside")
    command(terminal, "/alpha auto", "ships with this model")
    leave(terminal)
    message = saved(home)[-1]
    assert message["role"] == "assistant"
    assert message["schedule"]["source"] == "off"  # type: ignore[index]


def test_commands(chat: Chat, home: Path, tmp_path: Path) -> None:
    terminal = chat(rows=50)
    command(terminal, "/?", "/bye leave (or Ctrl-D)")
    command(terminal, "/alhpa 1", "did you mean /alpha?")
    command(terminal, "/exit now", "/exit takes no argument")
    command(terminal, "/set", "/set NAME VALUE")
    command(terminal, "/set temprature 1", "did you mean temperature?")
    command(terminal, "/set top-p", "/set top-p needs a value")
    command(terminal, "/set top_p 7", "top-p is 7.0")
    command(terminal, "/set max-tokens 0", "max-tokens is 0")
    command(terminal, "/set max-tokens 5", "max-tokens is now 5")
    command(terminal, "/set stop \\n", "stop is now '\\n'")
    command(terminal, "/set stop default", "stop is now none")
    command(terminal, "/set start 20%", "start is now 1")
    command(terminal, "/set start 2000", "beyond the model's context of 1,024")
    command(terminal, "/set core-first 99", "lower ")
    command(terminal, "/model", "/model needs a name")
    command(terminal, "/", "there is no command /")
    command(terminal, "/set think on", "think is now on")
    command(terminal, "Hello.", "no thinking switch")
    at_prompt(terminal)
    terminal.send(CTRL_C)  # what could not be answered stands at the prompt again
    terminal.wait("Ctrl-D or /bye leaves")
    command(terminal, "/set think default", "as the model does by itself")
    command(terminal, "/system You are kind.", "system prompt: You are kind.")
    turn(terminal, "//usr is a path?")
    assert "stopped: length" in terminal.plain
    command(terminal, "/show", "max-tokens 5")
    assert "system You are kind." in terminal.plain
    command(terminal, '/system "Be brief."', "system prompt: Be brief.")
    command(terminal, '/system ""', "no system prompt")
    command(terminal, "/save", "saved: ")
    command(terminal, f"/save {tmp_path}/no/copy.jsonl", "there is no directory")
    os.mkfifo(tmp_path / "pipe")
    command(terminal, f"/save {tmp_path}/pipe", "is not a conversation")
    command(terminal, f"/load {tmp_path}/pipe", "is not a regular file")
    copy = tmp_path / "my copy.jsonl"
    command(terminal, f"/save '{copy}'", "saved: ")
    command(terminal, f"/save {copy}", "saved: ")
    assert copy.read_text().count("\n") == 2
    assert json.loads(copy.read_text().split("\n")[0])["content"] == "/usr is a path?"
    command(terminal, f"/save {BUILTIN_PATH / 'config.json'}", "is not a conversation")
    command(terminal, "/load nothing.jsonl", "there is no conversation")
    command(terminal, "/undo", "your message is at the prompt")
    terminal.wait(">>> /usr is a path?")
    assert not (home / "conversations").exists() or not list(
        (home / "conversations").glob("*.jsonl")
    )
    terminal.send(CTRL_C)
    at_prompt(terminal)
    command(terminal, f"/load {copy}", "2 messages so far; the last:")
    command(terminal, "/clear", "a new conversation")
    command(terminal, "/show", "0 messages")
    terminal.line("/bye")
    assert terminal.end() == 0
    assert len(list((home / "conversations").glob("*.jsonl"))) == 1  # the one that was loaded


def test_another_model(chat: Chat, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in BUILTIN_PATH.iterdir():
        shutil.copy(file, other)
    terminal = chat("--max-tokens", "5")
    turn(terminal, "Hello.")
    command(terminal, "/model nonsense", "there is no model or directory")
    turn(terminal, "Hello.")
    command(terminal, f"/model {other}", "this model is not calibrated")
    command(terminal, "/show", "a cautious default")
    turn(terminal, "Hello.")
    leave(terminal)


def test_ctrl_c_at_any_moment_keeps_the_conversation(chat: Chat, home: Path) -> None:
    terminal = chat()
    moments = random.Random(7)
    for _ in range(8):
        at_prompt(terminal)
        count = terminal.text.count("\n")
        terminal.line(STORY)
        terminal.read(moments.uniform(0.0, 1.2))
        terminal.send(CTRL_C)
        terminal.wait(lambda: terminal.text.count("\n") > count)  # noqa: B023
        at_prompt(terminal)
        time.sleep(1.1)  # else the next one would be "at once"
        terminal.send(CTRL_C)  # a message that got no reply stands at the prompt again
        terminal.read(0.2)
    at_prompt(terminal)
    command(terminal, "/set max-tokens 8", "max-tokens is now 8")
    turn(terminal, "What is 3 + 4?")
    leave(terminal)
    messages = saved(home)
    assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
    model, shown = load_model(dtype="float32", device="cpu"), []
    for message in messages:
        if message["role"] == "assistant":
            reply = Engine(model).stream(shown, max_tokens=message["stats"]["completion_tokens"])
            list(reply)
            assert reply.text.removesuffix("\ufffd") == message["content"]
        shown.append({"role": message["role"], "content": message["content"]})


@pytest.mark.parametrize("gap", [0.05, 0.5])
def test_a_second_ctrl_c_at_once_leaves(chat: Chat, home: Path, gap: float) -> None:
    terminal = chat()
    terminal.line(STORY)
    terminal.wait("quiet corner")
    terminal.send(CTRL_C)
    terminal.read(gap)
    terminal.send(CTRL_C)
    assert terminal.end() == 130
    assert saved(home)[-1]["finish_reason"] == "interrupted"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["term", "hup"]
)
def test_a_signal_saves_and_leaves(chat: Chat, home: Path, number: int, code: int) -> None:
    terminal = chat()
    terminal.line(STORY)
    terminal.wait("quiet corner")
    terminal.child.kill(number)
    assert terminal.end() == code
    reply = saved(home)[-1]
    assert reply["finish_reason"] == "interrupted"
    assert "quiet corner" in str(reply["content"])
    terminal = chat("-c")
    assert "2 messages so far" in terminal.plain
    terminal.child.kill(number)
    assert terminal.end() == code


def test_a_closed_terminal_saves_first(chat: Chat, home: Path) -> None:
    terminal = chat()
    terminal.line(STORY)
    terminal.wait("quiet corner")
    os.close(terminal.child.child_fd)
    deadline = time.monotonic() + 30
    while terminal.child.isalive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not terminal.child.isalive()
    assert saved(home)[-1]["finish_reason"] == "interrupted"


def test_resume_after_a_kill(chat: Chat, home: Path) -> None:
    terminal = chat("--alpha", "off")
    turn(terminal, "What is 27 + 45?")
    terminal.line(STORY)
    terminal.wait("lived near")
    terminal.child.kill(signal.SIGKILL)
    terminal.end()
    assert [message["role"] for message in saved(home)] == ["user", "assistant", "user"]
    terminal = chat("-c", ready="has no reply yet")
    terminal.wait(f">>> {STORY}")
    assert "The answer is 72." in terminal.plain
    terminal.send("\r")
    terminal.wait("all can see it")
    at_prompt(terminal)
    leave(terminal)
    assert [message["role"] for message in saved(home)] == ["user", "assistant"] * 2


def test_what_is_typed_during_a_reply_is_sent_after_it(chat: Chat, home: Path) -> None:
    terminal = chat()
    terminal.line(STORY)
    terminal.wait("quiet corner")
    terminal.line("What is 27 + 45?")
    terminal.wait("The answer is 72.")
    at_prompt(terminal)
    leave(terminal)
    assert [message["content"] for message in saved(home)][::2] == [STORY, "What is 27 + 45?"]


@pytest.mark.parametrize("length", [1022, 1023])  # a terminal is read by 1,024 bytes
def test_a_long_text_typed_during_a_reply_is_one_message(
    chat: Chat, home: Path, length: int
) -> None:
    terminal = chat("--max-tokens", "60")
    terminal.line(STORY)
    terminal.wait("quiet corner")
    text = ("fox, " * 300)[:length]
    terminal.line(f"{text}\rand the end")
    terminal.wait(lambda: terminal.plain.count("tokens ·") == 2)
    at_prompt(terminal)
    leave(terminal)
    assert [message["content"] for message in saved(home)][2] == f"{text}\nand the end"


@pytest.mark.parametrize("lines", [500, 110_000])
def test_a_paste_of_many_lines(chat: Chat, home: Path, lines: int) -> None:
    terminal = chat("--max-tokens", "1", "--on-overflow", "drop-oldest")
    pasted = "\n".join(f"{number} é" for number in range(lines))  # a megabyte, at most
    last = pasted.rpartition("\n")[2]
    terminal.paste(pasted)
    terminal.wait(last)
    terminal.send("\r")
    terminal.wait("more than the model's context of 1,024 leaves room for")
    terminal.wait(lambda: terminal.plain.count(last) == 2)  # it stands at the prompt again
    assert not (home / "conversations").exists() or not list(
        (home / "conversations").glob("*.jsonl")
    )
    terminal.send(CTRL_C)
    terminal.read(0.5)
    short = "\n".join(f"{number}" for number in range(100))
    terminal.paste(short)
    terminal.read(0.5)
    terminal.send("\r")
    terminal.wait("1 token ·")
    leave(terminal)
    assert saved(home)[0]["content"] == short


def test_a_conversation_of_2000_messages(chat: Chat, home: Path) -> None:
    (home / "conversations").mkdir(parents=True)
    path = home / "conversations" / "20260101-000000-aaaa.jsonl"
    said = [f"number {number // 2}: {'word ' * 50}" for number in range(2000)]
    lines = [
        {"schema": 1, "role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate(said)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    terminal = chat("-c", "--max-tokens", "5", "--on-overflow", "drop-oldest", columns=120)
    terminal.line("Hello?")
    terminal.wait('no longer shown to the model: "number 0: word')
    terminal.wait("5 tokens ·")
    leave(terminal)
    found = [message["content"] for message in saved(home)]
    assert len(found) == 2002
    assert found[:2001] == [*said, "Hello?"]


def test_several_lines(chat: Chat, home: Path) -> None:
    terminal = chat("--max-tokens", "1")
    terminal.send(f"one{CTRL_J}two{ESCAPE}\rthree\r")
    terminal.wait("1 token ·")
    at_prompt(terminal)
    terminal.send('"""four\r')
    terminal.wait("...")
    terminal.send('five"""\r')
    terminal.wait(lambda: terminal.plain.count("1 token ·") == 2)
    leave(terminal)
    assert [m["content"] for m in saved(home) if m["role"] == "user"] == [
        "one\ntwo\nthree",
        "four\nfive",
    ]


def test_editor_completion_and_history(chat: Chat, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "from the editor" >> "$1"\n')
    editor.chmod(0o700)
    terminal = chat("--max-tokens", "1", EDITOR=str(editor), VISUAL=str(editor))
    terminal.send(CTRL_G)
    terminal.wait(">>> from the editor")
    turn(terminal, "")
    terminal.send("/comp\t")
    terminal.wait(">>> /compare")
    terminal.send(CTRL_C)
    terminal.wait("leaves")
    at_prompt(terminal)
    terminal.send("/set on-o\t\t")
    terminal.wait(">>> /set on-overflow")
    leave_line(terminal)
    terminal = chat("--keys", "vi")
    terminal.send(UP * 2)
    terminal.wait(">>> from the editor")
    terminal.send(f"{ESCAPE}")
    terminal.read(0.8)  # vi waits, in case the escape begins a key
    terminal.send("0dwiFar \r")
    terminal.wait("tokens ·")
    assert "Far the editor" in terminal.plain
    leave(terminal)


def leave_line(terminal: Terminal) -> None:
    terminal.send(CTRL_C)
    terminal.read(0.5)
    leave(terminal)


def test_resized_and_suspended(home: Path) -> None:
    shell = Terminal("--norc", "-i", home=home, program="/bin/bash", PS1="sh> ")
    try:
        shell.line(f"{sys.executable} -m d3cli chat --threads 1 --dtype float32")
        shell.wait(">>>")
        shell.line(STORY)
        shell.wait("quiet corner")
        shell.send(CTRL_Z)
        shell.wait("Stopped")
        shell.resize(50, 15)
        shell.line("echo still here; fg")
        shell.wait("byte ratio")
        assert "still here" in shell.plain
        assert "where all can see it" in shell.plain
        at_prompt(shell)
        shell.send(CTRL_Z)
        shell.wait(lambda: shell.text.endswith("sh>"))
        shell.line("fg")
        shell.read(1)
        shell.line("/show")
        shell.wait("saved")
        shell.send(CTRL_D)
        shell.wait(lambda: shell.text.endswith("sh>"))
        shell.line("stty -a | tr ' ' '\\n' | grep echo$")
        shell.wait(lambda: shell.text.split("\n")[-2] == "echo")  # it left the terminal as it was
    finally:
        shell.close()


def test_what_is_typed_meanwhile_waits_for_the_prompt(chat: Chat) -> None:
    terminal = chat()
    terminal.line(STORY)
    terminal.wait("quiet corner")
    terminal.send("typed ahead")
    terminal.wait("byte ratio")
    terminal.wait(">>> typed ahead")
    assert terminal.plain.count("typed ahead") == 1
    leave_line(terminal)


def test_ctrl_d_before_the_prompt_is_back_leaves(chat: Chat) -> None:
    terminal = chat()
    terminal.line(STORY)
    terminal.wait("quiet corner")
    leave(terminal)
    assert "byte ratio" in terminal.plain  # the reply was written to its end first


@pytest.mark.parametrize(
    "options",
    [{"columns": 20, "rows": 6}, {"columns": 300, "rows": 90}, {"TERM": "dumb"}, {"NO_COLOR": "1"}],
    ids=["narrow", "huge", "dumb", "no-color"],
)
def test_other_terminals(chat: Chat, options: dict[str, object]) -> None:
    terminal = chat("--plain", "--no-stats", **options)
    terminal.line("What is 27 + 45?")
    terminal.wait("answer is 72.")
    at_prompt(terminal)
    assert "tok/s" not in terminal.plain
    if "NO_COLOR" in options:
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", terminal.raw)
    leave(terminal)


def test_a_full_context_is_never_cut_in_silence(chat: Chat, home: Path) -> None:
    (home / "conversations").mkdir(parents=True)
    words = "one two three four five six seven eight nine ten " * 9
    lines = [
        {"schema": 1, "role": role, "content": f"{number} {words}"}
        for number in range(8)
        for role in ("user", "assistant")
    ]
    path = home / "conversations" / "20260101-000000-aaaa.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    terminal = chat("--resume", "20260101", "--max-tokens", "5", columns=120)
    terminal.line("Hello?")
    terminal.wait("more than the model's context of 1,024 leaves room for")
    terminal.wait(">>> Hello?")
    terminal.send(CTRL_C)
    terminal.read(0.3)
    command(terminal, "/set on-overflow drop-oldest", "on-overflow is now drop-oldest")
    terminal.line("Hello?")
    terminal.wait('no longer shown to the model: "0 one two')
    terminal.wait("5 tokens ·")
    at_prompt(terminal)
    command(terminal, "/show", "are no longer shown")
    leave(terminal)
    assert len(saved(home)) == 18  # what the model is not shown is kept all the same


class TestWithoutATerminal:
    def test_it_points_to_generate(self, d3: D3) -> None:
        check(d3("chat"), 2, "d3 chat needs a terminal")
        assert "d3 generate" in d3("chat").err

    def test_the_list(self, d3: D3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("D3_HOME", str(tmp_path))
        assert d3("chat", "--list").code == 0
        directory = tmp_path / "conversations"
        directory.mkdir()
        good = {"schema": 1, "role": "user", "content": "Why is\x1b[31m the sky blue?\nTell me."}
        (directory / "20260101-000000-aaaa.jsonl").write_text(json.dumps(good) + "\n")
        (directory / "20260102-000000-bbbb.jsonl").write_text("{")
        result = d3("chat", "--list")
        assert result.code == 0
        [one] = [line for line in result.out.splitlines() if "aaaa" in line]
        assert one.split("\t")[2:] == ["1", "", "Why is␛[31m the sky blue?"]
        [other] = [line for line in result.out.splitlines() if "bbbb" in line]
        assert "line 1: " in other


def test_bad_input_is_told_before_anything_is_loaded(home: Path) -> None:
    for arguments, says, code in (
        (["-c", "--resume", "x"], "ask for two conversations", 2),
        (["-c"], "there is no conversation to continue", 2),
        (["--resume", "x"], 'there is no conversation "x"', 2),
        (["--alpha", "2"], "alpha is 2, outside (0, 1]", 2),
        (["--temperature", "-1"], "--temperature is -1", 2),
        (["no-such-model"], "there is no model or directory", 2),
    ):
        terminal = Terminal("-m", "d3cli", "chat", *arguments, home=home, columns=200)
        assert terminal.end() == code
        assert says in terminal.plain
        assert "Traceback" not in terminal.plain
        terminal.close()


def test_one_conversation_is_open_once(chat: Chat, home: Path) -> None:
    terminal = chat("--max-tokens", "2")
    turn(terminal, "Hello.")
    other = Terminal("-m", "d3cli", "chat", "-c", home=home, columns=120)
    assert other.end(60) == 2
    assert "is open in another d3 chat" in other.plain
    leave(terminal)


def test_nothing_is_kept_where_nobody_wants_it(chat: Chat, home: Path) -> None:
    terminal = chat("--no-save", "--max-tokens", "2")
    turn(terminal, "Hello.")
    command(terminal, "/show", "saved no")
    command(terminal, f"/save{CTRL_J}/bye", "/save takes one line")
    leave(terminal)
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_conversation_that_goes_on_keeps_its_system_prompt(chat: Chat, home: Path) -> None:
    (home / "conversations").mkdir(parents=True)
    (home / "config.toml").write_text('system = "From the config."\nkeys = "vi"\n')
    lines = [
        {"schema": 1, "role": "system", "content": "Its own."},
        {"schema": 1, "role": "user", "content": "Hello."},
        {"schema": 1, "role": "assistant", "content": "Hi.", "model": "demo"},
    ]
    path = home / "conversations" / "20260101-000000-aaaa.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    terminal = chat("-c")
    command(terminal, "/system", "system prompt: Its own.")
    leave(terminal)
    terminal = chat("-c", "--system", "Another.")
    command(terminal, "/system", "system prompt: Another.")
    leave(terminal)
    terminal = chat()
    command(terminal, "/system", "system prompt: From the config.")
    leave(terminal)


def test_what_cannot_be_saved_is_said_each_time(chat: Chat, home: Path) -> None:
    (home / "chat-history").mkdir(parents=True)
    (home / "conversations").write_text("a file, not a directory")
    terminal = chat("--max-tokens", "2", columns=160)
    assert "what you type is not kept" in terminal.plain
    for number in (1, 2):
        turn(terminal, "Hello.")
        terminal.wait(lambda: terminal.plain.count("cannot be saved") == number)  # noqa: B023
        assert "2 tokens ·" in terminal.plain.split("cannot be saved")[-2]  # below the reply
    command(terminal, "/show", "NOT saved: the conversation cannot be saved")
    before = terminal.plain.count("saved: ")
    command(terminal, "/save", "check the disk and the permissions")
    assert terminal.plain.count("saved: ") == before
    leave(terminal)


def test_a_full_disk_does_not_garble_the_reply(chat: Chat, home: Path) -> None:
    limit = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); "
        "sys.argv[0] = 'd3'; from d3cli.__main__ import main; main()"
    )
    words = ["-c", limit, "chat", "--threads", "1", "--dtype", "float32"]
    terminal = Terminal(*words, home=home, columns=100)
    try:
        terminal.wait(">>>")
        turn(terminal, STORY)
        terminal.wait("cannot be saved")
        assert terminal.plain.count("In a quiet corner") == 1
        assert len(saved(home)) == 1
        leave(terminal)
    finally:
        terminal.close()


def test_a_system_prompt_that_is_too_long_is_named(chat: Chat) -> None:
    terminal = chat("--system", "word " * 1100, "--on-overflow", "drop-oldest", columns=120)
    command(terminal, "Hi", "the system prompt and the message are")
    assert '/system ""' in terminal.plain
    leave_line(terminal)


def test_ctrl_c_ends_a_template_that_takes_its_time(chat: Chat, tmp_path: Path) -> None:
    for file in BUILTIN_PATH.iterdir():
        if file.name not in ("schedule.json", "chat_template.jinja"):
            shutil.copy(file, tmp_path)
    slow = "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2
    (tmp_path / "chat_template.jinja").write_text(slow)
    terminal = chat(tmp_path, columns=160)
    terminal.line("Hello.")
    terminal.read(2)
    terminal.send(CTRL_C)  # at its limit the template would end with an error instead
    terminal.wait("stopped before the first token")
    terminal.wait(lambda: terminal.text.endswith(">>> Hello."))
    assert "^C" not in terminal.text
    terminal.read(1.1)  # else the next one would be "at once"
    leave_line(terminal)


def test_what_came_before_a_failure_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(dtype="float32", device="cpu")
    output = Output()
    replies = Replies(
        output, Screen(reply_console()), Saving("20260101-000000-aaaa"), show_above=print
    )
    conversation = Conversation(model)
    conversation.say(STORY)
    schedule = model.schedule()
    options = ReplyOptions(schedule, "shipped", SamplingParams(), max_tokens=20)
    steps = iter(range(9))

    def fail_at_last(*words: object, **named: object) -> object:
        if next(steps, None) is None:
            raise RuntimeError("can't allocate memory")
        return decode_step(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("d3cli.decode.loop.decode_step", fail_at_last)
    with pytest.raises(RuntimeError, match="allocate"):
        replies.write(conversation, options, ChatSettings(plain=True))
    kept = transcript.read(transcript.path_of("20260101-000000-aaaa"))
    assert [one.role for one in kept] == ["user", "assistant"]
    assert kept[1].stats["completion_tokens"] == 10  # type: ignore[index]
