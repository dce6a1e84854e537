"""One chat: its conversation, its settings, and what its commands do with them.

Knows nothing of keys, and nothing of how commands are written. Imports torch only inside functions,
since the first prompt is there before it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3cli.base.errors import spelled
from d3cli.cli.chat.attachments import Attachments
from d3cli.cli.chat.drafts import Drafts
from d3cli.cli.chat.model_switch import Models
from d3cli.cli.chat.saving import Saving
from d3cli.cli.chat.screen import Screen
from d3cli.cli.chat.settings import ChatSettings
from d3cli.cli.chat.writer import Replies
from d3cli.cli.output import Output
from d3cli.cli.prompt_options import Think
from d3cli.cli.request import resolve_think
from d3cli.decode import transcript
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.transcript import ChatMessage
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import Schedule
from d3cli.model.schedule_choice import choose_draft_schedule, choose_schedule

if TYPE_CHECKING:
    from d3cli.decode.conversation import Conversation, ReplyOptions
    from d3cli.decode.reply import Reply


def as_typed(message: str) -> str:
    """A message as the user types it: two slashes stand for one at its beginning."""
    return f"/{message}" if message.startswith("/") else message


class Chat:
    """A conversation at a terminal.

    Attributes:
        output: notes and errors.
        screen: standard output.
        drafts: what drafts lossless replies.
        attachments: files that stand before the next message.
        model_name: what the user calls the model.
        options: how the next reply is written, by the present settings.
        comparisons: what /compare found last, in words, for each depth schedule.
        draft: the text that the next prompt begins with.
    """

    def __init__(
        self,
        output: Output,
        screen: Screen,
        replies: Replies,
        saving: Saving,
        models: Models,
        conversation: "Conversation",
        settings: ChatSettings,
        model_name: str,
        drafts: Drafts,
    ) -> None:
        self.output, self.screen, self.replies, self.saving = output, screen, replies, saving
        self.models, self.model_name, self.drafts = models, model_name, drafts
        self.conversation, self.settings = conversation, settings
        self.draft, self.attachments = "", Attachments()
        self.comparisons: dict[Schedule, str] = {}
        self._noted: object = None  # the schedule whose notes were shown last
        self._depth_shown = False
        self.options = self._choose_options(settings)

    def say(self, text: str) -> None:
        """Adds the user's message, with the attached files before it, and saves it.

        A failure to save is reported after the reply.
        """
        self.conversation.say(self.attachments.put_before(text))
        self.saving.save(self.conversation)

    def take_back_unanswered(self) -> None:
        """Makes a last message that got no reply the draft."""
        if text := self.conversation.take_back_unanswered():
            self.draft = as_typed(self.attachments.take_back(text))
            self.save()

    def respond(self, options: "ReplyOptions", began: float | None = None) -> "Reply | None":
        """Writes a reply to the last message and keeps it; None if it has no tokens.

        Args:
            began: when the user began to wait, by `time.perf_counter`.
        """
        return self.replies.write(self.conversation, options, self.settings, began)

    def read_ahead(self) -> None:
        """Reads what the next prompt begins with, in the background."""
        self.replies.read_ahead(self.conversation, self.options, self.settings)

    def save(self) -> None:
        """Saves the conversation; a failure is reported and not raised."""
        self.saving.save(self.conversation)
        if self.saving.problem is not None:
            self.output.failure(self.saving.problem)

    def room_for(self, path: Path) -> int:
        """Tokens that a file may have beside the conversation and the other attached files."""
        conversation, options = self.conversation, self.options
        # The oldest turns make room for it if they may be dropped.
        drops = self.settings.on_overflow == "drop-oldest"
        used = 0 if drops else len(conversation.opening(options))
        return conversation.model.context_length - used - self.attachments.tokens(without=path)

    def change(self, **changes: Any) -> bool:
        """Changes settings, all of them or none.

        Returns whether a note has shown the depth schedule.

        Raises:
            UsageError: they do not fit the model.
        """
        settings = replace(self.settings, **changes)
        self._depth_shown = False
        options = self._choose_options(settings)
        self.settings, self.options = settings, options
        return self._depth_shown

    @property
    def compared(self) -> str:
        """What /compare found for the present depth schedule; empty if nothing yet."""
        return self.comparisons.get(self.options.schedule, "")

    def options_with(self, **changes: Any) -> "ReplyOptions":
        """The options that changed settings would lead to.

        Raises:
            UsageError: they do not fit the model.
        """
        return self._choose_options(replace(self.settings, **changes))

    def start_new(self) -> None:
        """Begins a new conversation; the one before stays on disk."""
        self.conversation.clear()
        self.attachments.clear()
        self.replies.forget()
        if self.saving.id is not None:
            self.saving.save_as(transcript.new_id())

    def take_over(self, record: Sequence[ChatMessage]) -> None:
        """Goes on with a copy of a saved conversation instead of the present one."""
        self.start_new()
        self.conversation.resume(record)
        self.show_last()
        self.save()

    def show_last(self) -> None:
        """Shows the last turn of a resumed conversation.

        A last message without a reply becomes the draft.
        """
        self.draft = as_typed(self.conversation.take_back_unanswered())
        messages = self.conversation.messages
        show_last(self.output, self.screen, messages, self.settings, draft=self.draft)

    def _choose_options(self, settings: ChatSettings) -> "ReplyOptions":
        """How replies are written by these settings; prints notes about a schedule that is new.

        Raises:
            UsageError: the settings do not fit the model.
        """
        from d3cli.decode.conversation import ReplyOptions

        model = self.conversation.model
        text = model.text
        think = resolve_think(text.tokenizer, text.renderer, settings.think, settings.chat_template)
        core = (settings.core_first, settings.core_last)
        depth = (settings.alpha, settings.start, core, settings.units)
        drafter = None
        if settings.lossless is None:
            command = self.models.calibrate_with(self.model_name)
            choice = choose_schedule(model, *depth, command)
        else:
            choice = choose_draft_schedule(model, settings.lossless, *depth)
            drafter = self.drafts.drafter(model, settings.lossless)
        sampling = SamplingParams.resolve(settings.sampling, model.text.generation_settings)
        now = (self.model_name, choice)
        if now != self._noted:
            for note in choice.notes:
                self.output.note(note)
            in_words = choice.schedule.in_words()
            is_full = drafter is None and choice.source is Source.DEFAULT
            self._depth_shown = is_full or any(in_words in spelled(note) for note in choice.notes)
        self._noted = now
        return ReplyOptions(
            choice.schedule,
            choice.source,
            sampling,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            chat_template=settings.chat_template,
            think=think,
            repair=settings.repair if drafter is None else "always",
            drafter=drafter,
        )


def show_last(
    output: Output,
    screen: Screen,
    messages: Sequence[ChatMessage],
    settings: ChatSettings,
    *,
    draft: str,
) -> None:
    """Shows the last turn of an earlier conversation.

    Args:
        draft: its last message, if that has no reply yet; `messages` are without it.
    """
    if messages:
        output.note(f"{len(messages)} messages so far; the last:")
    for message in messages[-2:]:
        screen.show_message(
            message.role,
            message.content,
            plain=settings.plain,
            hide=settings.think is Think.hide,
        )
    if draft:
        output.note("the message at the prompt has no reply yet")
