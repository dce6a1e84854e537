"""Replies as OpenAI's API writes them: whole, or as the chunks of a stream."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from d3cli.serve.events import Closed, Event, Opened, TokenScore, Written
from d3cli.text.reasoning import PartsStream

FINISH = {"stop": "stop", "length": "length", "context": "length"}


@dataclass(slots=True)
class Head:
    """What every object about one reply repeats.

    Attributes:
        fingerprint: which program and which form of the weights write.
    """

    model: str
    fingerprint: str
    prefix: str
    kind: str
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    def object(self, choices: Sequence[Mapping[str, Any]], kind: str = "") -> dict[str, Any]:
        """An object with these choices."""
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": kind or self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
        }


class ChatFormat:
    """Writes a reply of `/v1/chat/completions`.

    Args:
        with_scores: whether log-probabilities were asked for.
        with_usage: whether the stream ends with the usage.
    """

    def __init__(
        self, model: str, fingerprint: str, *, with_scores: bool, with_usage: bool
    ) -> None:
        self._head = Head(model, fingerprint, "chatcmpl", "chat.completion")
        self._with_scores, self._with_usage = with_scores, with_usage
        self._parts = PartsStream()

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of a stream for an event."""
        if isinstance(event, Opened):
            self._parts = PartsStream(event.inside)
            yield self._chunk({"role": "assistant", "content": ""})
        elif isinstance(event, Written):
            scores = [*map(_item, event.scores)]
            for kind, text in [*self._texts(event)] or [("content", "")] * bool(scores):
                yield self._chunk({kind: text}, scores=scores)
                scores = []
            if event.finish_reason is not None:
                yield self._chunk({}, finish=FINISH[event.finish_reason])
        elif isinstance(event, Closed) and self._with_usage:
            yield self._head.object((), "chat.completion.chunk") | {"usage": event.usage}

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """The response for all events of a reply."""
        texts, scores = {"content": "", "reasoning_content": ""}, list[dict[str, Any]]()
        finish, usage = "", dict[str, Any]()
        for event in events:
            if isinstance(event, Opened):
                self._parts = PartsStream(event.inside)
            elif isinstance(event, Written):
                for kind, text in self._texts(event):
                    texts[kind] += text
                scores += map(_item, event.scores)
                finish = event.finish_reason or finish
            elif isinstance(event, Closed):
                usage = event.usage
        message: dict[str, Any] = {
            "role": "assistant",
            "content": texts["content"],
            "refusal": None,
        }
        if reasoning := texts["reasoning_content"].strip():
            message["reasoning_content"] = reasoning
        choice = {
            "index": 0,
            "message": message,
            "logprobs": {"content": scores, "refusal": None} if self._with_scores else None,
            "finish_reason": FINISH[finish],
        }
        return self._head.object([choice]) | {"usage": usage}

    def _texts(self, event: Written) -> Iterator[tuple[str, str]]:
        """The new parts of the message, by the names of their fields."""
        told = [self._parts.push(event.text)]
        if event.finish_reason is not None:
            told.append(self._parts.flush())
        for reasoning, answer in told:
            if reasoning:
                yield "reasoning_content", reasoning
            if answer:
                yield "content", answer

    def _chunk(
        self,
        delta: Mapping[str, str],
        *,
        scores: list[dict[str, Any]] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": {"content": scores, "refusal": None} if scores else None,
            "finish_reason": finish,
        }
        chunk = self._head.object([choice], "chat.completion.chunk")
        return chunk | ({"usage": None} if self._with_usage else {})


class TextFormat:
    """Writes a reply of `/v1/completions`; arguments and methods as of `ChatFormat`."""

    def __init__(
        self, model: str, fingerprint: str, *, with_scores: bool, with_usage: bool
    ) -> None:
        self._head = Head(model, fingerprint, "cmpl", "text_completion")
        self._with_scores, self._with_usage = with_scores, with_usage
        # Of the next token, in prompt and reply together, whether the prompt is echoed or not.
        self._offset = 0

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of a stream for an event."""
        if isinstance(event, Opened):
            self._offset = event.before
            if event.echo:
                yield self._chunk(event.echo, event.scores)
        elif isinstance(event, Written):
            finish = None if event.finish_reason is None else FINISH[event.finish_reason]
            if event.text or event.scores or finish:
                yield self._chunk(event.text, event.scores, finish)
        elif isinstance(event, Closed) and self._with_usage:
            yield self._head.object(()) | {"usage": event.usage}

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """The response for all events of a reply."""
        text, scores = "", list[TokenScore]()
        finish, usage = "", dict[str, Any]()
        for event in events:
            if isinstance(event, Opened):
                self._offset = event.before
                text += event.echo
                scores += event.scores
            elif isinstance(event, Written):
                text += event.text
                scores += event.scores
                finish = event.finish_reason or finish
            elif isinstance(event, Closed):
                usage = event.usage
        return self._head.object([self._choice(text, scores, FINISH[finish])]) | {"usage": usage}

    def _chunk(
        self, text: str, scores: Sequence[TokenScore], finish: str | None = None
    ) -> dict[str, Any]:
        chunk = self._head.object([self._choice(text, scores, finish)])
        return chunk | ({"usage": None} if self._with_usage else {})

    def _choice(
        self, text: str, scores: Sequence[TokenScore], finish: str | None
    ) -> dict[str, Any]:
        logprobs = self._columns(scores) if self._with_scores and (scores or text) else None
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _columns(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        offsets = []
        for score in scores:
            offsets.append(self._offset)
            self._offset += len(score.text)
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [
                None if score.logprob is None else dict(reversed(score.most_likely))
                for score in scores
            ],
            "text_offset": offsets,
        }


ReplyFormat = ChatFormat | TextFormat


def _item(score: TokenScore) -> dict[str, Any]:
    """A token as an item of the list in a chat's log-probabilities."""
    others = [_scored(text, logprob) for text, logprob in score.most_likely]
    return _scored(score.text, score.logprob) | {"top_logprobs": others}


def _scored(text: str, logprob: float | None) -> dict[str, Any]:
    whole = "\ufffd" not in text  # else it is a part of a character
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}
