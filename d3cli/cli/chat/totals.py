"""What all replies of a chat add up to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d3cli.decode.agreement import Agreement
    from d3cli.decode.reply import Reply
    from d3cli.decode.stats import LosslessStats


@dataclass(slots=True)
class Totals:
    """Counts over all replies since the chat began.

    Attributes:
        steps: decode steps; token 0 of a reply needs none.
        depth: layers, summed over the decode steps.
        compared, agreed: tokens compared with full depth, and those that agreed.
        lossless: figures of the lossless replies; None without one.
    """

    replies: int = 0
    tokens: int = 0
    decode_s: float = 0.0
    steps: int = 0
    depth: float = 0.0
    compared: int = 0
    agreed: int = 0
    lossless: "LosslessStats | None" = None

    def add(self, reply: "Reply") -> None:
        """Counts one more reply, without its agreement, which is known later."""
        stats = reply.stats
        self.replies += 1
        self.tokens += stats.completion_tokens
        self.decode_s += stats.decode_s
        self.steps += max(0, stats.completion_tokens - 1)
        self.depth += sum(token.depth for token in reply.tokens[1:])
        if stats.lossless is not None:
            before = self.lossless
            self.lossless = stats.lossless if before is None else before + stats.lossless

    def add_agreement(self, found: "Agreement") -> None:
        """Counts what the repair of a reply found."""
        self.compared += found.compared
        self.agreed += found.agreed
