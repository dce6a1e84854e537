"""Writes a chat's replies: shows, keeps and counts them, and reads ahead for the next one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from d3cli.base.errors import ContextFullError, D3Error
from d3cli.cli import signals
from d3cli.cli.chat.saving import Saving
from d3cli.cli.chat.screen import Screen
from d3cli.cli.chat.settings import ChatSettings
from d3cli.cli.chat.totals import Totals
from d3cli.cli.chat.views import stats_line
from d3cli.cli.format import agreement
from d3cli.cli.output import Output
from d3cli.cli.progress import PROGRESS_FROM
from d3cli.cli.prompt_options import Think
from d3cli.cli.signals import Stopped
from d3cli.text.reasoning import count_thinking, split_reasoning

if TYPE_CHECKING:
    from d3cli.decode.conversation import Conversation, ReplyOptions
    from d3cli.decode.read_ahead import ReadAhead
    from d3cli.decode.reply import Reply

# Dropped turns that are listed; the rest are counted.
MOST_LISTED = 10


class Replies:
    """Writes replies at a terminal.

    Args:
        show_above: shows a line above the prompt while the user types; called on a thread.

    Attributes:
        totals: figures of all replies.
    """

    def __init__(
        self, output: Output, screen: Screen, saving: Saving, show_above: Callable[[str], None]
    ) -> None:
        self._output, self._screen, self._saving = output, screen, saving
        self._show_above = show_above
        self.totals = Totals()
        self._ahead: ReadAhead | None = None
        self._last: Reply | None = None  # the last reply, until its agreement is shown
        self._warned = False

    def write(
        self,
        conversation: "Conversation",
        options: "ReplyOptions",
        settings: ChatSettings,
        began: float | None = None,
    ) -> "Reply | None":
        """Writes a reply to the last message and keeps it; None if it has no tokens.

        A signal ends the reply, and what was written until then is kept. Errors are shown.

        Raises:
            OSError: the terminal is gone; the reply so far is saved.
        """
        reply, view, shown = None, None, 0
        try:
            if settings.on_overflow == "drop-oldest":
                self._make_room(conversation, options)
            reply = conversation.answer(options, began=began)
            hide = settings.think is Think.hide
            view = self._screen.reply_view(plain=settings.plain, inside=_inside(reply), hide=hide)
            self._read_prompt(conversation, reply, settings)
            for chunk in reply:
                if chunk.token.drafted_by is not None and chunk.finish_reason is None:
                    continue  # the next token is there already: the same pass has verified it
                with signals.deferred():
                    view.push(reply.text[shown:])
                    shown = len(reply.text)
                signals.check()
        except Stopped:
            if reply is None or not reply.tokens:
                self._output.note("stopped before the first token")
        except ContextFullError as error:
            self._report_full(conversation, settings, error)
        except (D3Error, MemoryError) as error:
            self._output.failure(error)
        except Exception:  # the terminal is gone, or a GPU ran out of memory: keep the reply so far
            if reply is not None and reply.tokens:
                self._keep(conversation, reply, options)
            raise
        if reply is None or view is None or not reply.tokens:
            return None
        with signals.deferred():
            self._keep(conversation, reply, options)
            view.push(reply.text[shown:])
            view.finish()
            self._close(reply, settings)
        return reply

    def read_ahead(
        self, conversation: "Conversation", options: "ReplyOptions", settings: ChatSettings
    ) -> None:
        """Reads what the next prompt begins with, on a thread, until `stop_reading`."""
        from d3cli.decode.read_ahead import ReadAhead

        last = self._last

        def done() -> None:
            if last is not None and (text := self._agreement(last)) and settings.stats:
                self._show_above(text)

        self._ahead = ReadAhead(
            conversation.engine,
            lambda: conversation.opening(options),
            options.schedule,
            done,
            repair=options.repair,
        )

    def stop_reading(self) -> None:
        """Stops reading ahead. The engine is then free."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def abandon_reading(self) -> None:
        """Stops reading ahead for good, without waiting."""
        if self._ahead is not None:
            self._ahead.abandon()

    def forget(self) -> None:
        """Drops the last reply, because another conversation or model begins."""
        self._last = None

    def _make_room(self, conversation: "Conversation", options: "ReplyOptions") -> None:
        dropped = [one for one in conversation.make_room(options) if one.role == "user"]
        for message in dropped[:MOST_LISTED]:
            title = message.content.strip().partition("\n")[0]
            self._output.note(f'no longer shown to the model: "{title[:60]}" and its reply')
        if len(dropped) > MOST_LISTED:
            self._output.note(f"and the {len(dropped) - MOST_LISTED:,} turns after it")

    def _report_full(
        self, conversation: "Conversation", settings: ChatSettings, error: ContextFullError
    ) -> None:
        """Says which part of the prompt is too long, by how many tokens, and what to do."""
        over = f"{'at least ' * error.at_least}{1 + error.tokens - error.context:,}"
        room = f"{over} more than the model's context of {error.context:,} leaves room for"
        turns = sum(message["role"] != "system" for message in conversation.shown())
        what, hint = "message is", "shorten the message at the prompt"
        if conversation.system:
            what = "system prompt and the message are"
            hint = 'shorten the message at the prompt, or remove the system prompt: /system ""'
        if settings.on_overflow != "drop-oldest" and turns > 1:
            what = "conversation is"
            hint = (
                "/clear starts a new conversation, /undo takes back a turn, "
                "/set on-overflow drop-oldest drops the oldest turns"
            )
        self._output.error(f"the {what} {error.length}, {room}", hint)

    def _read_prompt(
        self, conversation: "Conversation", reply: "Reply", settings: ChatSettings
    ) -> None:
        """Reads the prompt; this repairs the reply before, and so yields its agreement."""
        before = self._last
        cache = conversation.engine.cache
        kept = cache.complete_length if settings.repair == "never" else cache.full_length
        new = len(reply.prompt_ids) - kept
        if new >= PROGRESS_FROM:
            self._output.progress.track(
                reply.prefill(), len(reply.prompt_ids), "reading the conversation"
            )
        else:
            for _ in reply.prefill():
                signals.check()
        for note in reply.notes:
            self._output.note(note)
        if before is not None and (text := self._agreement(before)) and settings.stats:
            self._output.note(text)

    def _keep(self, conversation: "Conversation", reply: "Reply", options: "ReplyOptions") -> None:
        """Adds a reply to the conversation and saves it."""
        if reply.finish_reason == "interrupted":
            reply.release()
        conversation.keep(reply, options)
        self._saving.save(conversation)
        self._last = reply
        self.totals.add(reply)

    def _close(self, reply: "Reply", settings: ChatSettings) -> None:
        """Prints the notes below a reply."""
        if not reply.text.strip():
            self._output.note("(an empty reply)")
        elif settings.think is Think.hide and _is_all_reasoning(reply):
            self._output.note("(no answer: the reply ended while the model was thinking)")
        if settings.stats:
            self._output.note(stats_line(reply))
        if self._saving.problem is not None:
            self._output.failure(self._saving.problem)
        if reply.finish_reason == "context":
            what = (
                "/clear starts a new conversation, "
                "/set on-overflow drop-oldest drops the oldest turns"
            )
            if settings.on_overflow == "drop-oldest":
                what = "the oldest turns are dropped with the next message"
            context = reply.model.context_length
            self._output.note(f"the context is full, {context:,} tokens: {what}")
        self._warn_of_thinking(reply)

    def _agreement(self, reply: "Reply") -> str:
        """A reply's agreement, once; empty if no token ran below full depth."""
        if reply is not self._last or reply.agreement is None:
            return ""
        self._last = None
        self.totals.add_agreement(reply.agreement)
        text = agreement(reply.agreement)
        return text and f"agreement with full depth: {text} tokens"

    def _warn_of_thinking(self, reply: "Reply") -> None:
        """Says once that the model reached its minimum depth while it was still thinking."""
        steps = count_thinking(reply.pieces, _inside(reply))
        floor = reply.schedule.floor
        below = floor < reply.model.num_layers and reply.schedule.alpha < 1
        if steps and below and not self._warned and reply.schedule.depth(steps) == floor:
            self._warned = True
            self._output.note(
                f"the model thought for {steps:,} tokens and reached its minimum depth before it "
                f"was done: /set start {steps} keeps full depth for that long"
            )


def _inside(reply: "Reply") -> str:
    """The opening tag of reasoning that the reply's prompt ends with; else empty."""
    from d3cli.decode.conversation import inside

    return inside(reply)


def _is_all_reasoning(reply: "Reply") -> bool:
    return not split_reasoning(_inside(reply) + reply.text)[1].strip()
