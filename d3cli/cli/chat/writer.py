"""Replies in a chat: written, shown, kept and counted; and what the next one needs, read ahead."""

from typing import TYPE_CHECKING

from rich.console import Console

from d3cli.base.errors import ContextFullError, D3Error
from d3cli.cli import figures, signals
from d3cli.cli.chat.line_editor import ChatPrompt
from d3cli.cli.chat.markdown import ReplyView
from d3cli.cli.chat.saving import Saving
from d3cli.cli.chat.settings import ChatSettings, Totals
from d3cli.cli.chat.views import stats_line
from d3cli.cli.output import PROGRESS_FROM, Output
from d3cli.cli.signals import Stopped
from d3cli.decode.conversation import Conversation, ReplyOptions, inside
from d3cli.decode.read_ahead import ReadAhead
from d3cli.text.reasoning import count_thinking

if TYPE_CHECKING:
    from d3cli.decode.session import Reply

# Turns that are named when they are dropped; those after them are counted.
MOST_NAMED = 10


class Replies:
    """Writes replies at a terminal.

    Attributes:
        totals: what all of them took.
    """

    def __init__(
        self, output: Output, console: Console, prompt: ChatPrompt, saving: Saving
    ) -> None:
        self._output, self._console, self._prompt = output, console, prompt
        self._saving = saving
        self.totals = Totals()
        self._ahead: ReadAhead | None = None
        self._untold: Reply | None = None  # its agreement was not shown yet
        self._warned = False

    def write(
        self,
        conversation: Conversation,
        options: ReplyOptions,
        settings: ChatSettings,
        began: float | None = None,
    ) -> "Reply | None":
        """Writes a reply to the last message and keeps it; None where not one token came.

        A signal ends it in order: what came until then is kept. Errors are shown.

        Raises:
            OSError: the terminal has gone; what came is saved.
        """
        reply, view = None, None
        try:
            if settings.on_overflow == "drop-oldest":
                self._make_room(conversation, options)
            reply = conversation.answer(options, began=began)
            view = self.view(settings, inside(reply))
            self._read_prompt(conversation, reply, settings)
            for chunk in reply:
                with signals.deferred():
                    view.push(chunk.text)
                signals.check()
        except Stopped:
            if reply is None or not reply.tokens:
                self._output.note("stopped before the first token")
        except ContextFullError as error:
            self._say_full(conversation, settings, error)
        except (D3Error, MemoryError) as error:
            self._output.failure(error)
        except Exception:  # the terminal has gone, a GPU's memory: what came is kept all the same
            if reply is not None and reply.tokens:
                self._keep(conversation, reply, options)
            raise
        if reply is None or view is None or not reply.tokens:
            return None
        with signals.deferred():
            rest = self._keep(conversation, reply, options)
            view.push(rest)
            view.finish()
            self._close(reply, settings)
        return reply

    def view(self, settings: ChatSettings, inside: str = "") -> ReplyView:
        """What shows a reply's text by the present settings."""
        plain = settings.plain or self._console.is_dumb_terminal
        return ReplyView(self._console, plain=plain, inside=inside)

    def read_ahead(
        self, conversation: Conversation, options: ReplyOptions, settings: ChatSettings
    ) -> None:
        """Reads what the next prompt begins with, until the user has typed it."""
        last = self._untold

        def done() -> None:
            if last is not None and (text := self._agreement(last)) and settings.stats:
                self._prompt.show_above(text)

        self._ahead = ReadAhead(conversation.engine, lambda: conversation.opening(options), done)

    def stop_reading(self) -> None:
        """Ends reading ahead; the engine is then free."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def abandon_reading(self) -> None:
        """Ends reading ahead for good, without waiting."""
        if self._ahead is not None:
            self._ahead.abandon()

    def forget(self) -> None:
        """The last reply is no longer of interest: another conversation begins, or model."""
        self._untold = None

    def _make_room(self, conversation: Conversation, options: ReplyOptions) -> None:
        dropped = [one for one in conversation.make_room(options) if one.role == "user"]
        for message in dropped[:MOST_NAMED]:
            title = message.content.strip().partition("\n")[0]
            self._output.note(f'no longer shown to the model: "{title[:60]}" and its reply')
        if len(dropped) > MOST_NAMED:
            self._output.note(f"and the {len(dropped) - MOST_NAMED:,} turns after it")

    def _say_full(
        self, conversation: Conversation, settings: ChatSettings, error: ContextFullError
    ) -> None:
        over = f"{'at least ' * error.at_least}{1 + error.tokens - error.context:,}"
        room = f"{over} more than the model's context of {error.context:,} leaves room for"
        turns = sum(message["role"] != "system" for message in conversation.shown())
        what, hint = "message is", "shorten it; it stands at the prompt"
        if conversation.system:
            what = "system prompt and the message are"
            hint = 'shorten the message at the prompt, or the system prompt: /system "" removes it'
        if settings.on_overflow != "drop-oldest" and turns > 1:
            what = "conversation is"
            hint = (
                "/clear begins anew, /undo takes back a turn, /set on-overflow drop-oldest leaves "
                "out the oldest"
            )
        self._output.error(f"the {what} {error.length}, {room}", hint)

    def _read_prompt(
        self, conversation: Conversation, reply: "Reply", settings: ChatSettings
    ) -> None:
        """Reads the prompt; its repair tells the agreement of the reply before."""
        before = self._untold
        new = len(reply.prompt_ids) - conversation.engine.cache.full_length
        if new >= PROGRESS_FROM:
            self._output.track(reply.prefill(), len(reply.prompt_ids), "reading the conversation")
        else:
            for _ in reply.prefill():
                signals.check()
        if before is not None and (text := self._agreement(before)) and settings.stats:
            self._output.note(text)

    def _keep(self, conversation: Conversation, reply: "Reply", options: ReplyOptions) -> str:
        """Adds a reply to the conversation and to the file; gives what is still to be shown."""
        rest = reply.release() if reply.finish_reason == "interrupted" else ""
        conversation.keep(reply, options)
        self._saving.save(conversation)
        self._untold = reply
        self.totals.add(reply)
        return rest

    def _close(self, reply: "Reply", settings: ChatSettings) -> None:
        if not reply.text.strip():
            self._output.note("(an empty reply)")
        if settings.stats:
            self._output.note(stats_line(reply))
        if self._saving.problem is not None:
            self._output.failure(self._saving.problem)
        if reply.finish_reason == "context":
            what = "/clear begins anew, /set on-overflow drop-oldest leaves out the oldest turns"
            if settings.on_overflow == "drop-oldest":
                what = "the next message leaves out the oldest turns"
            context = reply.model.context_length
            self._output.note(f"the context is full, {context:,} tokens: {what}")
        self._warn_of_thinking(reply)

    def _agreement(self, reply: "Reply") -> str:
        """What the repair of a reply found, once; empty where nothing ran below full depth."""
        if reply is not self._untold or reply.agreement is None:
            return ""
        self._untold = None
        self.totals.compared += reply.agreement.compared
        self.totals.agreed += reply.agreement.agreed
        text = figures.agreement(reply.agreement)
        return text and f"agreement with full depth: {text} tokens"

    def _warn_of_thinking(self, reply: "Reply") -> None:
        """Says once that a reply was still thinking when it reached its least depth."""
        steps = count_thinking(reply.pieces, inside(reply))
        floor = reply.schedule.floor
        below = floor < reply.model.num_layers and reply.schedule.alpha < 1
        if steps and below and not self._warned and reply.schedule.depth(steps) == floor:
            self._warned = True
            self._output.note(
                f"the model thought for {steps:,} tokens, and ran at its least depth before it "
                f"was done: /set start {steps} keeps full depth for so long"
            )
