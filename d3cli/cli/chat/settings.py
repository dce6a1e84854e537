"""What a chat's commands may change, and what its replies add up to: values."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from d3cli.decode.session import Reply


@dataclass(slots=True)
class ChatSettings:
    """What the options say and commands may change.

    Attributes:
        sampling: fields of `SamplingParams` that were given; None or absent: the checkpoint's.
        on_overflow: what happens where the context is full: "stop" or "drop-oldest".
    """

    alpha: float | Literal["auto", "off"] = "auto"
    start: int | None = None
    core_first: int | None = None
    core_last: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think: bool | None = None
    chat_template: str | None = None
    stats: bool = True
    plain: bool = False
    on_overflow: Literal["stop", "drop-oldest"] = "stop"


@dataclass(slots=True)
class Totals:
    """What all replies of this session took."""

    replies: int = 0
    tokens: int = 0
    decode_s: float = 0.0
    steps: int = 0
    depth: float = 0.0  # summed over the decode steps
    compared: int = 0
    agreed: int = 0

    def add(self, reply: "Reply") -> None:
        """Counts one more reply; its agreement is known later."""
        stats = reply.stats
        self.replies += 1
        self.tokens += stats.completion_tokens
        self.decode_s += stats.decode_s
        self.steps += max(0, stats.completion_tokens - 1)
        self.depth += sum(token.depth for token in reply.tokens[1:])
