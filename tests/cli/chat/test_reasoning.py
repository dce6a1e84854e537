"""Reasoning in a chat: shown, hidden, and shown after all."""

import pytest

from d3cli.cli.chat.markdown import HIDDEN
from d3cli.cli.prompt_options import Think
from d3cli.decode.transcript import ChatMessage
from tests.cli.chat.desk import NewDesk
from tests.scripted import script

PIECES = ["<think>", "Let me", " see.</th", "ink>\n\n", "Yes."]


@pytest.mark.parametrize("plain", [False, True])
def test_hidden_it_is_shown_by_a_command(
    plain: bool, desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, PIECES)
    one = desk(think=Think.hide, plain=plain)
    shown = one.type("Well?")
    assert shown.startswith(f"{HIDDEN} Yes. ")
    assert "Let me" not in shown
    assert one.type("/think") == "Let me see."
    assert one.chat.conversation.messages[-1].content == "".join(PIECES)


def test_it_can_be_hidden_and_shown_from_the_next_reply_on(
    desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, PIECES)
    one = desk()
    assert "Let me see." in one.type("Well?")
    for line, seen in (
        ("/think hide", False),
        ("/set think default", True),
        ("/set think hide", False),
    ):
        assert "think is now" in one.type(line)
        assert ("Let me see." in one.type("Well?")) == seen


def test_a_prompt_that_opens_it(desk: NewDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, ["Let me see.", "</think>", "Yes."])
    template = "{{ messages[-1].content }}<think>"
    one = desk(think=Think.hide, chat_template=template)
    assert one.type("Well?").startswith(f"{HIDDEN} Yes. ")
    assert one.type("/think") == "Let me see."


def test_a_reply_that_is_all_reasoning_is_told(
    desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, ["<think>", "Let me", "", "", ""])
    assert "no answer" in desk(think=Think.hide).type("Well?")
    assert "no answer" not in desk().type("Well?")


def test_an_old_message_is_hidden_too(desk: NewDesk) -> None:
    one = desk([ChatMessage("user", "<think>a"), ChatMessage("assistant", "<think>b</think>c")])
    one.chat.show_last()
    assert "<think>b</think>" in one.shown()
    one.type("/think hide")
    one.chat.show_last()
    shown = one.shown()
    assert ">>> <think>a c" in shown
    assert "b" not in shown.partition(">>>")[2]
    assert one.type("/think") == "b"


def test_the_command_needs_a_reply_and_a_known_word(desk: NewDesk) -> None:
    one = desk()
    assert "there is no reply yet" in one.type("/think")
    assert 'think cannot be "loud"' in one.type("/think loud")
    one.type("Hello.")
    assert one.type("/think") == "the last reply has no reasoning"
