"""Replies of a chat: what is shown and kept, whatever happens. Without a terminal."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from d3cli.cli import signals
from d3cli.decode import transcript
from d3cli.decode.loop import decode_step
from d3cli.decode.transcript import ChatMessage
from tests.cli.chat.at_terminal import STORY
from tests.cli.chat.desk import Desk, NewDesk

WORDS = "one two three four five six seven eight nine ten " * 9
EIGHT_TURNS = [  # more than the built-in model's context of 1,024 tokens
    ChatMessage(role, f"{number} {WORDS}")
    for number in range(8)
    for role in ("user", "assistant")
]  # fmt: skip


def fail_at(step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises an error instead of the decode step of this number."""
    steps = iter(range(1, step))

    def fail(*words: object, **named: object) -> object:
        if next(steps, None) is None:
            raise error
        return decode_step(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("d3cli.decode.loop.decode_step", fail)


def test_what_came_before_a_failure_is_kept(desk: NewDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    one = desk(max_tokens=20)
    fail_at(10, RuntimeError("can't allocate memory"), monkeypatch)
    with pytest.raises(RuntimeError, match="allocate"):
        one.type(STORY)
    kept = transcript.read(one.path)
    assert [message.role for message in kept] == ["user", "assistant"]
    assert kept[1].stats is not None
    assert kept[1].stats["completion_tokens"] == 10


@pytest.mark.parametrize("step", [1, 10])
def test_a_signal_ends_a_reply_and_what_was_written_stays(
    step: int, desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desk(max_tokens=20)
    fail_at(step, signals.Stopped(signal.SIGINT), monkeypatch)
    shown = one.type(STORY)
    assert f"{step} token" in shown
    assert "stopped: interrupted" in shown
    kept = transcript.read(one.path)
    assert kept[1].finish_reason == "interrupted"
    assert kept[1].content
    assert kept[1].content in shown


def test_a_signal_before_the_first_token_gives_the_message_back(
    desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desk()
    monkeypatch.setattr(
        "d3cli.decode.conversation.Conversation.answer", _raise(signals.Stopped(signal.SIGINT))
    )
    assert "stopped before the first token" in one.type(STORY)
    assert one.draft == STORY
    assert not one.path.exists()


def test_a_signal_just_before_or_after_a_reply_loses_nothing(
    desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desk()
    respond = one.chat.respond
    monkeypatch.setattr(one.chat, "respond", _raise(signals.Stopped(signal.SIGINT)))
    one.type(STORY)
    assert one.draft == STORY
    assert one.chat.conversation.messages == []
    assert not one.path.exists()

    def respond_then_stop(*words: Any) -> None:
        respond(*words)
        raise signals.Stopped(signal.SIGINT)

    one.chat.draft = ""
    monkeypatch.setattr(one.chat, "respond", respond_then_stop)
    one.type(STORY)
    assert one.draft == ""
    assert [message.role for message in transcript.read(one.path)] == ["user", "assistant"]


def test_a_signal_between_the_prompt_and_the_reply_gives_the_message_back(
    desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desk()
    monkeypatch.setattr(
        one.chat.replies, "stop_reading", lambda: os.kill(os.getpid(), signal.SIGINT)
    )
    assert one.type(STORY) == ""
    assert one.draft == STORY
    assert one.chat.conversation.messages == []


def _raise(error: BaseException) -> object:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_full_context_is_never_cut_in_silence(desk: NewDesk) -> None:
    one = desk(list(EIGHT_TURNS))
    shown = one.type("Hello?")
    assert "the conversation is " in shown
    assert "more than the model's context of 1,024 leaves room for" in shown
    assert "/set on-overflow drop-oldest drops the oldest turns" in shown
    assert one.draft == "Hello?"
    one.type("/set on-overflow drop-oldest")
    shown = one.type("Hello?")
    assert 'no longer shown to the model: "0 one two' in shown
    assert "5 tokens ·" in shown
    assert "of them no longer shown to the model" in one.type("/show")
    assert len(transcript.read(one.path)) == 18  # what the model is not shown is kept all the same


def test_a_context_that_fills_up_says_what_to_do(desk: NewDesk) -> None:
    before = [ChatMessage("user", "Hi."), ChatMessage("assistant", "word " * 960)]
    shown = desk(before, max_tokens=None, alpha="off").type(STORY)
    assert "the context is full, 1,024 tokens: /clear starts a new conversation" in shown


def test_many_dropped_turns_are_counted(desk: NewDesk) -> None:
    turns = [
        ChatMessage(role, f"{number} " + "word " * 50)
        for number in range(40)
        for role in ("user", "assistant")
    ]
    shown = desk(turns, on_overflow="drop-oldest").type("Hello?")
    assert shown.count("no longer shown to the model") == 10
    assert "turns after it" in shown


@pytest.mark.parametrize("overflow", ["stop", "drop-oldest"])
def test_the_part_that_is_too_long_is_named(overflow: str, desk: NewDesk) -> None:
    one = desk(on_overflow=overflow)
    assert "the message is 1,1" in one.type("word " * 1100)
    one.chat.draft = ""
    one.type("/system " + "word " * 1100)
    shown = one.type("Hi")
    assert "the system prompt and the message are" in shown
    assert 'or remove the system prompt: /system ""' in shown
    assert one.draft == "Hi"


def test_what_cannot_be_saved_is_said_each_time(desk: NewDesk, monkeypatch: pytest.MonkeyPatch,
                                                tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setenv("D3_HOME", str(tmp_path))
    one = desk()
    for path in (tmp_path / "conversations").iterdir():
        path.unlink()
    (tmp_path / "conversations").rmdir()
    (tmp_path / "conversations").write_text("a file, not a directory")
    for _ in range(2):
        shown = one.type("Hello.")
        assert shown.index("5 tokens ·") < shown.index("cannot be saved")  # below the reply
        assert shown.count("cannot be saved") == 1
    assert "NOT saved: the conversation cannot be saved" in one.type("/show")
    shown = one.type("/save")
    assert "check the disk and the permissions" in shown
    assert "saved: /" not in shown


def test_a_reply_shows_its_figures_or_none(desk: NewDesk) -> None:
    one = desk()
    shown = one.type("Hello.")
    assert "5 tokens ·" in shown
    assert "stopped: length" in shown
    one.type("/set stats off")
    assert "5 tokens ·" not in one.type("Hello.")


def test_the_agreement_is_told_once(desk: NewDesk) -> None:
    one = desk(max_tokens=40)
    assert "agreement" not in one.type(STORY)
    assert one.type("Go on.").count("agreement with full depth") == 1  # of the reply before
    shown = one.type("/stats")
    assert "all replies 2:" in shown
    # Of the 40 tokens of the first reply, all but the first ran at less than full depth.
    assert re.search(r"agreement \d+\.\d% of 39 tokens", shown)


def test_reading_ahead_tells_the_agreement(desk: NewDesk) -> None:
    one = desk(max_tokens=40)
    one.type(STORY)
    one.chat.read_ahead()
    ahead = one.chat.replies._ahead
    assert ahead is not None
    ahead._thread.join()
    one.chat.replies.stop_reading()
    assert "agreement with full depth" in one.shown()
    assert "agreement with full depth" not in one.type("Go on.")


def test_thinking_at_the_minimum_depth_is_warned_of_once(desk: NewDesk, tmp_path: Path) -> None:
    template = "{{ messages[-1].content }}<think>"
    one = desk(alpha=0.5, start=0, max_tokens=20, chat_template=template)
    shown = one.type("Hello.")
    thought = re.search(r"the model thought for (\d+) tokens and reached its minimum depth", shown)
    assert thought is not None
    assert f"before it was done: /set start {thought[1]} keeps full depth" in shown
    assert f" {thought[1]} tokens · " in shown  # all of them thoughts
    assert "minimum depth" not in one.type("Hello.")


def test_an_unanswered_message_is_the_draft_of_a_resumed_chat(desk: NewDesk) -> None:
    said = [ChatMessage("user", "Hi."), ChatMessage("assistant", "Ho."), ChatMessage("user", "Eh?")]
    one = desk(said)
    one.chat.show_last()
    shown = one.shown()
    assert ">>> Hi. Ho." in shown
    assert "2 messages so far; the last:" in shown
    assert "the message at the prompt has no reply yet" in shown
    assert one.draft == "Eh?"


def test_only_the_end_of_a_long_old_message_is_shown(desk: NewDesk) -> None:
    one: Desk = desk([ChatMessage("user", "word " * 5000), ChatMessage("assistant", "Ho.")])
    one.chat.show_last()
    shown = one.shown()
    assert ">>> … 17,000 characters … word" in shown
    assert len(shown) < 9000
