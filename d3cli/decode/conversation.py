"""A conversation with a model: its messages and turns, taking turns back, a full context.

Knows nothing of terminals, commands or files.
"""

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from d3cli.base.errors import ContextFullError, D3Error
from d3cli.decode.agreement import common_prefix
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.reply import Reply
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.decode.shared_cache import RepairChoice
from d3cli.decode.transcript import ChatMessage
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import Schedule
from d3cli.model.model import LoadedModel
from d3cli.text.chat_template import Message, encode_chat
from d3cli.text.reasoning import opening_tag

# Tokens at the end of a prompt that are searched for an opening tag of reasoning.
PROMPT_END = 16
# The last replies, kept so that each can be compared once those after it are taken back.
REPLIES_KEPT = 8
# The share of the context that is free after the oldest turns are left out: enough that this does
# not happen again at every turn.
FREE_SHARE = 1 / 4


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How a reply is written.

    Attributes:
        schedule_source: where the schedule comes from.
        stop, chat_template, think, repair, drafter: as for `Engine.stream`.
    """

    schedule: Schedule
    schedule_source: Source
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    chat_template: str | None = None
    think: bool | None = None
    repair: RepairChoice = "auto"
    drafter: Drafter | None = None


class Conversation:
    """The messages of a conversation, and one KV cache for all of them.

    Args:
        record: an earlier conversation to continue, its system prompt first.
        revision: of the model, if one was asked for; new replies record it.

    Attributes:
        system: the system prompt; empty for none.
        messages: those of the user and of the model, in order.
        left_out: how many of the oldest messages the model is no longer shown.
    """

    def __init__(
        self,
        model: LoadedModel,
        record: Sequence[ChatMessage] = (),
        *,
        revision: str | None = None,
    ) -> None:
        self.engine = Engine(model)
        self._revision = revision
        self.resume(record)

    def resume(self, record: Sequence[ChatMessage]) -> None:
        """Replaces this conversation with an earlier one, its system prompt first."""
        has_system = bool(record) and record[0].role == "system"
        self.system = record[0].content if has_system else ""
        self.messages = list(record[has_system:])
        self.left_out = 0
        self._written: list[tuple[ChatMessage, Reply]] = []  # the last ones

    @property
    def reply(self) -> Reply | None:
        """The last message, if it is a reply that was written here; else None."""
        last = self.messages[-1] if self.messages else None
        return next((reply for message, reply in self._written if message is last), None)

    @property
    def model(self) -> LoadedModel:
        return self.engine.model

    def record(self) -> list[ChatMessage]:
        """All messages, the system prompt first, with those that the model is no longer shown."""
        system = [ChatMessage("system", self.system)] if self.system else []
        return [*system, *self.messages]

    def shown(self) -> list[Message]:
        """The messages that the model is shown."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = self.messages[self.left_out :]
        return system + [{"role": one.role, "content": one.content} for one in messages]

    def say(self, text: str) -> None:
        """Adds the user's message."""
        self.messages.append(ChatMessage("user", text))

    def answer(self, options: ReplyOptions, *, began: float | None = None) -> Reply:
        """Returns a reply to the last message, to iterate and then to `keep`.

        Args:
            began: as for `Engine.stream`.

        Raises:
            ContextFullError: the messages shown do not fit the model's context.
            D3Error: as for `Engine.stream`.
        """
        return self.engine.stream(
            self.shown(),
            schedule=options.schedule,
            sampling=options.sampling,
            max_tokens=options.max_tokens,
            stop=options.stop,
            chat_template=options.chat_template,
            think=options.think,
            repair=options.repair,
            drafter=options.drafter,
            began=time.perf_counter() if began is None else began,
        )

    def keep(self, reply: Reply, options: ReplyOptions) -> ChatMessage:
        """Adds a reply, whole or interrupted, to the conversation."""
        key, source, stats = self.model.origin.key, options.schedule_source, asdict(reply.stats)
        lossless = stats.pop("lossless")
        if reply.drafting is not None:
            drops = bool(reply.drafting.dropped(1))  # else full depth would draft for itself
            drafts = reply.drafting.to_json() | {"source": source} if drops else None
            lossless, source = {"schedule": drafts} | lossless, Source.OFF
        message = ChatMessage(
            "assistant",
            # The tag that the template wrote marks what follows as reasoning.
            inside(reply) + reply.text,
            model=self.model.name if key is None else key.model,
            revision=self._revision,
            finish_reason=reply.finish_reason,
            schedule=reply.schedule.to_json() | {"source": source},
            stats=stats,
            lossless=lossless,
        )
        self.messages.append(message)
        self._written = [*self._written, (message, reply)][-REPLIES_KEPT:]
        return message

    def take_back(self) -> str | None:
        """Removes the user's last message and what follows it, and returns its text.

        None if there is no such message.
        """
        at = self._last("user")
        if at is None:
            return None
        text = self.messages[at].content
        del self.messages[at:]
        self.left_out = min(self.left_out, len(self.messages))
        return text

    def take_back_unanswered(self) -> str:
        """Removes and returns the user's last message if it has no reply; else returns ""."""
        if self.messages and self.messages[-1].role == "user":
            return self.take_back() or ""
        return ""

    def put_back_reply(self, message: ChatMessage) -> None:
        """Reverses `take_back_reply`."""
        self.messages.append(message)

    def take_back_reply(self) -> ChatMessage | None:
        """Removes and returns the last message if it is a reply; else returns None."""
        if not self.messages or self.messages[-1].role != "assistant":
            return None
        return self.messages.pop()

    def clear(self) -> None:
        """Removes all messages; the system prompt stays."""
        self.messages, self.left_out, self._written = [], 0, []

    def make_room(self, options: ReplyOptions) -> list[ChatMessage]:
        """Leaves out the oldest turns if the context has too little room for a reply.

        Returns the messages that the model is no longer shown. They stay part of the conversation.

        Raises:
            ContextFullError: the last message alone does not fit.
            D3Error: as for `Engine.stream`.
        """
        context = self.model.context_length
        wanted = context // 8 if options.max_tokens is None else options.max_tokens
        before = self.left_out
        free = int(FREE_SHARE * context)

        def fits(left_out: int, room: int = free) -> bool:
            self.left_out = left_out
            try:
                return self._prompt_tokens(options) + room <= context
            except ContextFullError:
                return False

        if fits(before, min(wanted, context // 8)):
            return []

        # Show the messages from a user's message on: the first one that leaves room, else the last.
        later = range(before + 1, len(self.messages))
        begins = [at for at in later if self.messages[at].role == "user"] or [before]
        try:
            self.left_out = begins[min(bisect_left(begins, True, key=fits), len(begins) - 1)]
            tokens = self._prompt_tokens(options)
        except BaseException:  # even Ctrl-C: the caller could not report what was left out
            self.left_out = before
            raise
        if tokens >= context:
            self.left_out = before
            raise ContextFullError(tokens, context)
        return self.messages[before : self.left_out]

    def opening(self, options: ReplyOptions) -> list[int]:
        """The tokens that the next prompt begins with, whatever the user says.

        They can be read ahead. Empty if the chat template fails.
        """
        probes = [[*self.shown(), {"role": "user", "content": text}] for text in ("a", "One?")]
        try:
            first, second = (self._encode(probe, options) for probe in probes)
        except D3Error:  # the next message will raise it again
            return []
        return first[: common_prefix(first, second)][: self.model.context_length - 1]

    def _prompt_tokens(self, options: ReplyOptions) -> int:
        return len(self._encode(self.shown(), options))

    def _encode(self, messages: Sequence[Message], options: ReplyOptions) -> list[int]:
        return encode_chat(
            self.model.tokenizer,
            messages,
            self.model.text.renderer,
            context=self.model.context_length,
            chat_template=options.chat_template,
            think=options.think,
        )

    def _last(self, role: str) -> int | None:
        indices = range(len(self.messages) - 1, -1, -1)
        return next((at for at in indices if self.messages[at].role == role), None)


def inside(reply: Reply) -> str:
    """The opening tag of reasoning that the reply's prompt ends with; else empty."""
    end = reply.prompt_ids[-PROMPT_END:]
    return opening_tag(reply.model.tokenizer.decode(end, skip_special_tokens=False))
