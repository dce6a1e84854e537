"""Commands about the last reply: /depth, /compare, /think, /regen, /stats."""

from dataclasses import replace
from typing import TYPE_CHECKING

from d3cli.base.errors import UsageError
from d3cli.cli import signals
from d3cli.cli.chat import views
from d3cli.cli.chat.comparison import beside_full_depth, where_they_differ
from d3cli.cli.chat.session import Chat
from d3cli.cli.chat.setting_commands import set_
from d3cli.cli.chat.settings import parse_lossless
from d3cli.cli.format import agreement
from d3cli.depth.parse import parse_alpha
from d3cli.text.reasoning import split_reasoning

if TYPE_CHECKING:
    from d3cli.decode.conversation import ReplyOptions

SPEAK_FIRST = "say something first"


def depth(chat: Chat, _: str) -> None:
    """Draws the depth schedule and the depth of each token of the last reply."""
    reply, width = chat.conversation.reply, chat.screen.width
    chat.screen.print(views.depth_curves(chat.options, reply, width, chat.compared))


def compare(chat: Chat, _: str) -> None:
    """Compares the last reply with full depth.

    Raises:
        UsageError: the last message is not a reply of this session.
    """
    reply = chat.conversation.reply
    if not chat.conversation.messages:
        raise UsageError("there is no reply yet", SPEAK_FIRST)
    if reply is None:
        raise UsageError(
            "the last message was not written in this session", f"{SPEAK_FIRST}, or /regen"
        )
    if reply.drafting is None and all(
        token.depth == reply.model.num_layers for token in reply.tokens
    ):
        text = "the last reply ran at full depth, so there is nothing to compare"
        chat.screen.print(text, "dim")
        return
    from d3cli.scoring.compare_reply import compare_reply

    with chat.output.progress.waiting("comparing with full depth"):
        found = compare_reply(chat.conversation.engine, reply)
    signals.check()
    if reply.drafting is None:
        words = f"agreement in the last /compare: {agreement(found.agreement)} tokens"
        chat.comparisons[reply.asked] = words
    chat.screen.print_rows(beside_full_depth(reply, found))


def think(chat: Chat, argument: str) -> None:
    """Shows the reasoning of the last reply, or changes whether the model thinks.

    Raises:
        UsageError: there is no reply, or no such choice.
    """
    if argument:
        set_(chat, f"think {argument}")
        return
    messages = chat.conversation.messages
    if not messages or messages[-1].role != "assistant":
        raise UsageError("there is no reply yet", SPEAK_FIRST)
    reasoning, _ = split_reasoning(messages[-1].content)
    chat.screen.print(reasoning or "the last reply has no reasoning", "dim")


def regen(chat: Chat, argument: str) -> None:
    """Writes the last reply again, at another depth if one is given.

    Raises:
        UsageError: there is no reply, or no such depth.
    """
    conversation = chat.conversation
    before = conversation.reply
    options = _regen_options(chat, argument)
    if argument and before is not None:
        # The same seed, so that only the depth differs.
        options = replace(options, sampling=before.sampling)
    old = conversation.take_back_reply()
    if old is None:
        raise UsageError("there is no reply yet", SPEAK_FIRST)
    new, count = None, len(conversation.messages)
    try:
        new = chat.respond(options)
    finally:
        # If no token came, the old reply stays. If the terminal went, what came so far was kept.
        if new is None and len(conversation.messages) == count:
            conversation.put_back_reply(old)
            chat.save()
    if new is not None:
        chat.screen.print(where_they_differ(old, before, new), "dim")


def stats(chat: Chat, _: str) -> None:
    """Shows figures of the last reply and of all replies.

    Raises:
        UsageError: there are no replies.
    """
    if not chat.replies.totals.replies:
        raise UsageError("there are no replies yet", SPEAK_FIRST)
    chat.screen.print_rows(views.totals(chat.replies.totals, chat.conversation.reply))


def _regen_options(chat: Chat, argument: str) -> "ReplyOptions":
    if not argument:
        return chat.options
    word, _, value = argument.partition(" ")
    if word == "alpha" and value.strip():
        return chat.options_with(alpha=parse_alpha(value.strip()))
    if word == "lossless" and value.strip():
        source = parse_lossless(value.strip())
        if source is None:  # at full depth, which a lossless reply must equal
            return chat.options_with(lossless=None, alpha="off")
        return chat.options_with(lossless=source)
    raise UsageError(
        f"/regen does not accept {argument}",
        "type /regen alone, /regen alpha 0.99 or /regen lossless off",
    )
