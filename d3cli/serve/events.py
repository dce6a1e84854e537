"""What happens to a reply, from the worker to whoever sends it to the client."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from d3cli.serve.errors import ApiError


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token with its log-probability; None for the first token of a prompt.

    Attributes:
        text: what it adds to the text; empty within a character of several tokens.
        most_likely: the texts and log-probabilities of the most likely tokens at its place.
    """

    text: str
    logprob: float | None
    most_likely: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """The prompt is read.

    Attributes:
        inside: the opening tag of reasoning that the prompt ends with; else empty.
        echo: the prompt's text, where it was asked for, and `scores` its tokens.
        before: characters of the prompt, where it is not echoed but its length is needed.
    """

    inside: str = ""
    echo: str = ""
    scores: tuple[TokenScore, ...] = ()
    before: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """A token was written.

    Attributes:
        text: what is now certain of the reply.
        scores: the tokens of this text, if log-probabilities were asked for.
        finish_reason: why the reply ended, with its last token.
    """

    text: str
    scores: tuple[TokenScore, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """The reply has ended by itself."""

    usage: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The reply cannot be written, or not to its end."""

    error: ApiError


Event = Opened | Written | Closed | Failed


@dataclass(frozen=True, slots=True)
class Inbox:
    """Events on their way from the worker's thread to a task of the event loop."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)

    def put(self, event: Event) -> None:
        """Hands an event over, from any thread."""
        with suppress(RuntimeError):  # the loop has ended, and so has its reader
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def get(self) -> Event:
        """The next event."""
        return await self.events.get()
