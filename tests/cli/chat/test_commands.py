"""The commands of a chat, without a terminal."""

import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from d3cli.cli.chat.commands import COMMANDS
from d3cli.cli.chat.markdown import ReplyView
from d3cli.cli.chat.model_switch import NoModelLeftError
from d3cli.cli.prompt_options import Think
from d3cli.decode import transcript
from d3cli.decode.transcript import ChatMessage
from tests.cli.chat.at_terminal import STORY
from tests.cli.chat.desk import NewDesk, loop_of_links
from tests.conftest import BUILTIN_PATH

REFUSES = "{{ raise_exception('no') }}"
EARLY = ("/regen", "/undo", "/stats", "/save", "/compare")  # before the first message
THINKS = "{{ messages[-1].content }}{% if enable_thinking %} Well.{% endif %}"


def test_the_help_lists_every_command_once(desk: NewDesk) -> None:
    shown = desk().type("/?")
    assert "/exit, /bye leave (or Ctrl-D)" in shown
    assert "Ctrl-C stops a reply" in shown
    for name in COMMANDS:
        assert len(re.findall(rf"(^|[ ,]){re.escape(name)}[ ,]", shown)) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/alhpa 1", "did you mean /alpha?"),
        ("/", "there is no command /"),
        ("/exit now", "/exit takes no argument"),
        ("/save\n/bye", "/save takes one line"),
        ("/bye /bye", "/bye takes no argument"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/retry", "did you mean /regen?"),
        ("/resume", "did you mean /load?"),
        ("/quit", "did you mean /exit?"),
        ("/top_p 0.9", "did you mean /set top-p?"),
        ("/set alpha 0.9", "/set does not change alpha hint: type /alpha 0.9"),
        ("/set system Be kind.", "type /system Be kind."),
        ("/set model", "type /model"),
        ("/set top-p", "/set top-p needs a value"),
        ("/set think on", "no thinking switch hint: leave think at its default"),
        ("/think off", "no thinking switch hint: leave think at its default"),
        ("/set top_p 7", "top-p is 7.0"),
        ("/set top-p x", '"x" is not a number'),
        ("/set top-k 0.5", '"0.5" is not a whole number'),
        ("/set max-tokens 0", "max-tokens is 0 hint: it must be at least 1"),
        ("/set start 2000", "error: start is 2,000, beyond the model's context of 1,024"),
        ("/set core-first 99", "core-first"),
        ("/set plain maybe", 'plain cannot be "maybe" hint: give on, off or default'),
        ("/alpha 2", "alpha is 2, outside"),
        ("/alpha steep", 'alpha is "steep"'),
        ("/regen alpha 2", "alpha is 2, outside"),
        ("/regen it", "/regen does not accept it"),
        ("/model nonsense", "there is no model or directory"),
        ("/load", "/load needs a file"),
        ("/load nothing.jsonl", "there is no conversation"),
        ("/load 'x", "is not a file name"),
        *((early, "say something first") for early in EARLY),
    ],
)
def test_what_a_command_does_not_accept(line: str, says: str, desk: NewDesk) -> None:
    one = desk()
    before = one.chat.settings
    shown = one.type(line)
    assert "error: " in shown
    assert says in shown
    assert "--" not in shown.replace("d3 chat --list", "")  # no options: here they are settings
    assert one.code is None
    assert one.chat.settings == before


def test_a_model_without_a_name_shows_which_one_runs(desk: NewDesk) -> None:
    one = desk()
    shown = one.type("/model")
    assert f"model: {one.chat.model_name}; to go on with another" in shown
    assert "error" not in shown


def test_leaving(desk: NewDesk) -> None:
    for line in ("/exit", "/bye", "/BYE"):
        one = desk()
        assert one.type(line) == ""
        assert one.code == 0


def test_settings_change_and_go_back(desk: NewDesk) -> None:
    one = desk()
    assert "max-tokens 5" in one.type("/set")
    for line, says in (
        ("/set max_tokens 7", "max-tokens is now 7"),
        ("/set MAX-TOKENS 5", "max-tokens is now 5"),
        ("/set stop \\n", "stop is now '\\n'"),
        ("/set stop default", "stop is now none"),
        ("/set start 20%", "start is now 1"),
        ("/set temperature 0.5", "temperature is now 0.5"),
        ("/set temperature default", "temperature is now 0 (greedy)"),
        ("/set think hide", "think is now hide"),
        ("/set think default", "think is now the model's default"),
        ("/set on-overflow drop-oldest", "on-overflow is now drop-oldest"),
        ("/set stats off", "stats is now off"),
    ):
        assert says in one.type(line)
    assert one.chat.settings.sampling == {"temperature": None}
    assert "tok/s" not in one.type("Hello.")


def test_a_note_on_depth_is_shown_when_the_depth_changes(desk: NewDesk) -> None:
    one = desk(alpha=0.9, core_first=12, core_last=4)
    for line in ("/set temperature 0.5", "/set top-p 7", "/set stats off", "/set think on"):
        assert "no layer is dropped" not in one.type(line)
    assert "no layer is dropped" in one.type("/alpha 0.8")
    assert "no layer is dropped" not in one.type("/alpha off")
    assert "no layer is dropped" in one.type("/alpha 0.8")


def test_a_message_that_gets_no_reply_is_the_next_draft(desk: NewDesk) -> None:
    one = desk(chat_template=REFUSES)
    assert "cannot render this conversation: no" in one.type("Hello.")
    assert one.draft == "Hello."
    assert one.chat.conversation.messages == []
    assert not one.path.exists()


def test_thinking_needs_a_template_with_a_switch(desk: NewDesk) -> None:
    one = desk(chat_template=THINKS)
    assert "think is now on" in one.type("/set think on")
    assert one.chat.options.think is True
    assert "think is now off" in one.type("/think off")
    assert one.chat.options.think is False


def test_another_model_may_lack_the_thinking_switch(desk: NewDesk, other: Path) -> None:
    one = desk(chat_template=THINKS, think=Think.on)
    one.chat.settings = replace(one.chat.settings, chat_template=None)  # as the model's own
    shown = one.type(f"/model {other}")
    assert "no thinking switch, so think is at its default again" in shown
    assert one.chat.settings.think is None
    assert "stopped: length" in one.type("Hello.")


def test_a_message_may_begin_with_a_slash(desk: NewDesk) -> None:
    one = desk()
    assert re.search(r"[1-5] tokens · ", one.type("//usr is a path?"))
    assert one.chat.conversation.messages[0].content == "/usr is a path?"


def test_the_system_prompt(desk: NewDesk) -> None:
    one = desk()
    assert "system prompt: You are kind." in one.type("/system You are kind.")
    assert "stopped: length" in one.type("Hello.")
    shown = one.type("/show")
    assert "system You are kind." in shown
    assert "max-tokens 5" in shown
    assert f"saved {one.path}" in shown
    assert [message.role for message in transcript.read(one.path)] == [
        "system",
        "user",
        "assistant",
    ]
    assert "system prompt: Be brief." in one.type('/system "Be brief."')
    assert "no system prompt" in one.type('/system ""')
    assert "two\nlines" in (one.type("/system two\nlines"), one.chat.conversation.system)[1]


def test_depth_is_a_dial(desk: NewDesk) -> None:
    one = desk(max_tokens=60)
    assert "down to 9 of 16 layers (ships with this model)" in one.type("/depth")
    assert "depth: alpha 0.9 from token 0" in one.type("/alpha 0.9")
    one.type(STORY)
    assert "o: last reply, 60 tokens" in one.type("/depth")
    shown = one.type("/compare")
    assert "× the speed of full depth, 6 steps timed" in shown
    assert re.search(r"agreement \d+\.\d% of \d+ tokens below full depth", shown)
    assert "all replies 1:" in one.type("/stats")
    shown = one.type("/regen alpha off")
    assert "first different token: " in shown
    assert "layers mean 16.0, min 16 of 16" in shown
    assert "so there is nothing to compare" in one.type("/compare")
    assert "depth: full, all 16 layers" in one.type("/alpha off")
    assert "tokens as before" in one.type("/regen")
    assert "ships with this model" in one.type("/alpha auto")
    message = transcript.read(one.path)[-1]
    assert message.role == "assistant"
    assert message.schedule is not None
    assert message.schedule["source"] == "off"


def test_regen_keeps_the_seed_where_only_the_depth_is_to_differ(desk: NewDesk) -> None:
    one = desk(sampling={"temperature": 1.0})
    one.type("Hello.")
    seeds = []
    for line in ("/show", "/regen alpha off", "/regen"):
        one.type(line)
        assert one.chat.conversation.reply is not None
        seeds.append(one.chat.conversation.reply.sampling.seed)
    assert seeds[0] == seeds[1]
    assert seeds[1] != seeds[2]


def test_a_reply_that_cannot_be_written_again_stays(desk: NewDesk) -> None:
    one = desk()
    one.type("Hello.")
    before = list(one.chat.conversation.messages)
    one.chat.change(chat_template=REFUSES)
    assert "cannot render this conversation: no" in one.type("/regen")
    assert one.chat.conversation.messages == before
    assert transcript.read(one.path) == before


def test_a_terminal_that_goes_during_regen_leaves_one_reply(
    desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came so far replaces the old reply: two in a row would be no conversation."""
    one = desk()
    one.type("Hello.")

    def gone(*_: object) -> None:
        raise OSError(errno.EIO, "the terminal is gone")

    monkeypatch.setattr(ReplyView, "push", gone)
    with pytest.raises(OSError, match="gone"):
        one.type("/regen")
    for messages in (one.chat.conversation.messages, transcript.read(one.path)):
        assert [message.role for message in messages] == ["user", "assistant"]


def test_a_reply_of_an_earlier_session(desk: NewDesk) -> None:
    one = desk([ChatMessage("user", "Hello."), ChatMessage("assistant", "Hi.")])
    assert "was not written in this session" in one.type("/compare")
    assert "not the same text as before" in one.type("/regen")


def test_undo_puts_the_message_back(desk: NewDesk) -> None:
    one = desk()
    one.type("Hello.")
    assert one.path.exists()
    assert "your message is at the prompt" in one.type("/undo")
    assert one.draft == "Hello."
    assert not one.path.exists()  # nothing is left of the conversation


def test_saving_and_loading_copies(desk: NewDesk, tmp_path: Path) -> None:
    one = desk()
    one.type("Hello.")
    assert f"saved: {one.path}" in one.type("/save")
    assert "there is no directory" in one.type(f"/save {tmp_path}/no/copy.jsonl")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a conversation" in one.type(f"/save {tmp_path}/pipe")
    assert "error: " in one.type(f"/load {tmp_path}/pipe")
    assert "is not a conversation" in one.type(f"/save {BUILTIN_PATH / 'config.json'}")
    copy = tmp_path / "my copy.jsonl"
    for line in (f"/save '{copy}'", f"/save {copy}"):  # a conversation may be replaced
        assert f"saved: {copy}" in one.type(line)
    lines = copy.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["content"] == "Hello."
    first = one.path
    assert "2 messages so far; the last:" in one.type(f"/load {copy}")
    assert one.path != first  # a copy goes on; the file that was loaded is left alone
    assert one.path.exists()
    second = one.path
    assert "a new conversation" in one.type("/clear")
    assert one.path not in (first, second)
    assert "0 messages" in one.type("/show")
    assert "2 messages so far" in one.type(f"/load {second.stem}")  # by its id
    assert first.exists()


def test_a_copy_whose_last_line_is_cut_off_is_loaded_without_it(
    desk: NewDesk, tmp_path: Path
) -> None:
    one = desk()
    one.type("Hello.")
    one.type("And now?")
    copy = tmp_path / "copy.jsonl"
    one.type(f"/save {copy}")
    damaged = copy.read_bytes()[:-9]
    copy.write_bytes(damaged)
    shown = one.type(f"/load {copy}")
    assert "is incomplete and was left out" in shown
    assert "2 messages so far" in shown
    assert one.draft == "And now?"
    assert "is not a conversation" in one.type(f"/save {copy}")  # which would lose the line
    assert copy.read_bytes() == damaged


@pytest.mark.parametrize("name", ["x" * 300, "LOOP"])
def test_a_name_that_no_file_can_have_is_told_in_a_sentence(
    name: str, desk: NewDesk, tmp_path: Path
) -> None:
    name = loop_of_links(tmp_path) if name == "LOOP" else name
    one = desk()
    one.type("Hello.")
    for command, says in (("save", "cannot be written"), ("load", "cannot be read")):
        shown = one.type(f"/{command} {name}")
        assert f"{says}: " in shown
        assert "hint: " in shown
        assert "Errno" not in shown


def test_a_saved_link_stays_a_link(desk: NewDesk, tmp_path: Path) -> None:
    one = desk()
    one.type("Hello.")
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "copy.jsonl")
    assert f"saved: {link}" in one.type(f"/save {link}")
    assert link.is_symlink()
    assert len(transcript.read(tmp_path / "copy.jsonl")) == 2


def test_save_begins_to_save(desk: NewDesk) -> None:
    one = desk(save=False)
    one.type("Hello.")
    assert "saved no" in one.type("/show")
    assert "saved: " in one.type("/save")
    one.type("Go on.")
    assert len(transcript.read(one.path)) == 4


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another model: a copy of the built-in one that nobody has calibrated."""
    shutil.copytree(BUILTIN_PATH, tmp_path / "other")
    return tmp_path / "other"


def test_another_model(desk: NewDesk, other: Path) -> None:
    one = desk()
    one.type("Hello.")
    shown = one.type(f"/model {other}")
    assert "full depth, since this model is not calibrated" in shown
    assert "full, all 16 layers" in one.type("/show")
    assert "5 tokens" in one.type("Go on.")


def test_a_model_that_does_not_load_leaves_the_present_one(desk: NewDesk, other: Path) -> None:
    (other / "config.json").write_text("{}")
    one = desk()
    one.type("Hello.")
    assert "error: " in one.type(f"/model {other}")
    assert "model the built-in model" in one.type("/show")
    assert "5 tokens" in one.type("Go on.")


def test_settings_that_do_not_fit_another_model_are_auto_again(
    desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desk()
    one.chat.settings = replace(one.chat.settings, core_first=99)  # as a deeper model would allow
    assert "the settings do not fit this model, so they are auto again" in one.type("/model demo")
    assert one.chat.settings.core_first is None


def test_no_model_left_ends_the_chat(desk: NewDesk, other: Path) -> None:
    (other / "config.json").write_text("{}")
    one = desk()
    one.chat.model_name = "gone/since"
    with pytest.raises(NoModelLeftError, match="gone/since cannot be loaded again"):
        one.type(f"/model {other}")


@pytest.mark.parametrize("text", ["//usr", "//", "//clear x"])
def test_a_message_that_begins_with_a_slash_comes_back_as_it_was_typed(
    desk: NewDesk, text: str
) -> None:
    one = desk()
    one.type(text)
    one.type("/undo")
    assert one.draft == text
