"""Lossless replies in a chat: full depth's own, and what the chat says of drafts."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from d3cli.cli import signals
from d3cli.cli.chat.drafts import Drafts
from d3cli.decode import lossless, transcript
from d3cli.decode.draft.by_depth import DepthSource
from d3cli.decode.draft.drafter import Drafter, SourceChoice
from d3cli.decode.draft.lookup import LookupSource
from d3cli.decode.reply import Reply
from d3cli.decode.session import Engine
from d3cli.decode.transcript import ChatMessage
from d3cli.model.model import LoadedModel
from tests.cli.chat.at_terminal import STORY, StartChat, command, leave, saved, turn
from tests.cli.chat.desk import NewDesk
from tests.copies import stranger
from tests.decode.draft.fixed import Always
from tests.families import tiny

FOX = "The red fox ran to the pond, and the red fox ran to the den, and the red fox ran home."


class AlwaysDrafts(Drafts):
    """Drafts wherever there is something to draft, whether that pays or not."""

    def drafter(self, model: LoadedModel, source: SourceChoice) -> Drafter:
        if self._drafter is None or source != self._source:
            self._drafter = Always(DepthSource(model) if source == "depth" else LookupSource())
            self._source = source
        return self._drafter


def check_replies(messages: Sequence[ChatMessage], model: LoadedModel) -> int:
    """Each reply is the one that full depth writes alone; returns how many there are."""
    shown: list[dict[str, str]] = []
    count = 0
    for message in messages:
        if message.role == "assistant":
            assert message.stats is not None
            most = message.stats["completion_tokens"]
            plain = Engine(model).stream(shown, schedule=model.schedule("off"), max_tokens=most)
            list(plain)
            assert message.content == plain.text.removesuffix("\ufffd")
            count += 1
        shown.append({"role": message.role, "content": message.content})
    return count


def stop_at_pass(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a signal arrive before the pass of this number."""
    read_few, passes = lossless.read_few, iter(range(number - 1))

    def stopped(*words: object) -> object:
        if next(passes, None) is None:
            monkeypatch.setattr("d3cli.decode.lossless.read_few", read_few)
            raise signals.Stopped(signal.SIGINT)
        return read_few(*words)  # type: ignore[arg-type]

    monkeypatch.setattr("d3cli.decode.lossless.read_few", stopped)


def stop_after_token(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a signal arrive when the token of this number is part of the reply."""
    add, tokens = Reply._add, iter(range(number - 1))

    def stopped(reply: Reply, token: object) -> str:
        piece = add(reply, token)  # type: ignore[arg-type]
        if next(tokens, None) is None:
            monkeypatch.setattr(Reply, "_add", add)
            raise signals.Stopped(signal.SIGINT)
        return piece

    monkeypatch.setattr(Reply, "_add", stopped)


def test_replies_are_full_depths_over_any_turns(
    desk: NewDesk, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desk(max_tokens=24, lossless="lookup", drafts=AlwaysDrafts())
    one.type(STORY)
    one.type(FOX)
    stop_at_pass(2, monkeypatch)
    assert "stopped: interrupted" in one.type(f"Again. {STORY}")
    one.type("And then?")
    one.type("/undo")
    one.type(FOX)
    one.type("/lossless depth")
    one.type("/alpha 0.9")
    one.type(STORY)
    assert "the same 24 tokens as before" in one.type("/regen")
    assert "the same 24 tokens as before" in one.type("/regen lossless lookup")
    assert "the same 24 tokens as before" in one.type("/regen lossless off")
    assert one.chat.conversation.reply is not None
    assert one.chat.conversation.reply.drafting is None
    messages = transcript.read(one.path)
    assert check_replies(messages, model) == 5
    totals = one.chat.replies.totals.lossless
    assert totals is not None
    assert totals.sources.keys() == {"lookup", "depth"}
    assert totals.accepted < totals.drafted


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_a_signal_within_the_tokens_of_one_pass_loses_nothing(
    number: int, desk: NewDesk, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desk(max_tokens=24, lossless="lookup", drafts=AlwaysDrafts())
    one.type(STORY)
    stop_after_token(number, monkeypatch)
    shown = one.type(STORY)  # drafted from the first one
    kept = transcript.read(one.path)[-1]
    assert f"{number} tokens" in shown
    assert kept.content in shown
    one.type(STORY)
    assert check_replies(transcript.read(one.path), model) == 3


def test_a_reply_after_approximate_keys_and_values_is_full_depths(
    desk: NewDesk, model: LoadedModel
) -> None:
    one = desk(max_tokens=24, repair="never", alpha=0.5, drafts=AlwaysDrafts())
    one.type(STORY)
    before = transcript.read(one.path)
    one.type("/lossless lookup")
    one.type(FOX)
    shown = [
        {"role": said.role, "content": said.content} for said in [*before, ChatMessage("user", FOX)]
    ]
    plain = Engine(model).stream(shown, schedule=model.schedule("off"), max_tokens=24)
    list(plain)
    assert transcript.read(one.path)[-1].content == plain.text


def test_what_a_chat_says_of_drafts(desk: NewDesk) -> None:
    one = desk(max_tokens=24, drafts=AlwaysDrafts())
    assert one.type("/lossless") == "lossless off"
    assert one.type("/lossless on").startswith("lossless on; drafts by lookup")
    assert "depth: full depth, in the lossless mode; drafts by lookup" in one.type("/alpha")
    assert "lossless on; drafts by lookup" in one.type("/show")
    one.type(STORY)
    shown = one.type(STORY)
    assert "drafted " in shown
    assert "tokens a pass" in shown
    assert "so far drafted " in one.type("/lossless")
    assert "lossless drafted " in one.type("/stats")
    assert "lossless mode: alpha is for the drafts: alpha 0.9" in one.type("/alpha 0.9")
    one.type("/lossless depth")
    one.type(STORY)
    depth = one.type("/depth")
    assert "line: drafts by less depth: alpha 0.9" in depth
    assert "mean 16.0 layers" in depth
    assert "by lookup drafted " in one.type("/lossless")
    off = one.type("/lossless off")
    assert off.startswith("lossless off")
    assert "alpha 0.9" in off  # the depth of the replies from here on
    assert "lossless" not in one.type(STORY)


def test_a_saved_reply_says_what_drafted(desk: NewDesk) -> None:
    one = desk(max_tokens=12, lossless="depth", alpha=0.9, drafts=AlwaysDrafts())
    one.type(STORY)
    reply = transcript.read(one.path)[-1]
    assert reply.schedule is not None
    assert reply.lossless is not None
    assert (reply.schedule["source"], reply.schedule["alpha"]) == ("off", 1.0)
    assert reply.lossless["schedule"]["alpha"] == 0.9
    assert reply.lossless["sources"]["depth"]["drafted"] == reply.lossless["drafted"] > 0


def test_compare_finds_no_difference(desk: NewDesk) -> None:
    one = desk(max_tokens=24, lossless="depth", alpha=0.9, drafts=AlwaysDrafts())
    one.type(STORY)
    assert "first different token none: full depth writes the same reply" in one.type("/compare")
    one.type("/set temperature 1")
    one.type(STORY)
    assert "first different token unknown" in one.type("/compare")


def test_a_source_that_cannot_draft_is_refused(desk: NewDesk) -> None:
    one = desk(drafts=Drafts(tiny("llama").gated))
    assert "their tokenizers differ" in one.type("/lossless on")
    assert "their tokenizers differ" in one.type("/lossless model")
    assert 'lossless cannot be "maybe"' in one.type("/lossless maybe")
    assert "type /lossless on" in one.type("/set lossless on")
    assert one.type("/lossless") == "lossless off"
    assert "a model need one hint: name a smaller model" in desk().type("/lossless model")


def test_another_model_goes_on_without_a_draft_model_that_does_not_fit(
    desk: NewDesk, model: LoadedModel, tmp_path: Path
) -> None:
    one = desk(max_tokens=12, lossless="model", drafts=Drafts(model))
    assert "can hardly pay" in one.type(f"/model {stranger(tmp_path / 'other')}")
    assert one.type("/lossless") == "lossless on; drafts by the draft model"
    one.chat.drafts.draft_model = tiny("llama").gated
    assert "differ" in one.type("/model demo")
    assert one.type("/lossless").startswith("lossless on; drafts by lookup")
    one.type(STORY)
    assert check_replies(transcript.read(one.path), model) == 1


def test_a_draft_model_is_also_checked_while_replies_are_plain(desk: NewDesk) -> None:
    one = desk(max_tokens=3, drafts=Drafts(tiny("llama").gated))
    assert "the chat goes on without it" in one.type("/model demo")
    assert one.type("/lossless on").startswith("lossless on; drafts by lookup")


@pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX terminal")
def test_at_a_terminal(chat: StartChat, home: Path, model: LoadedModel) -> None:
    terminal = chat("--lossless", "--max-tokens", "40", columns=160)
    turn(terminal, STORY)
    turn(terminal, STORY)
    command(terminal, "/lossless", "so far")
    leave(terminal)
    fields = ("role", "content", "stats")
    messages = [ChatMessage(**{name: one.get(name) for name in fields}) for one in saved(home)]
    assert check_replies(messages, model) == 2
    assert messages[-1].content.split()[-1] in terminal.plain
