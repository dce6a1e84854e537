"""What a lossless reply drafted, what full depth accepted, and whether it equals plain decoding."""

from dataclasses import dataclass
from typing import Any, Literal

from d3cli.profile.trace_fields import Count, NotNegative, Positive, check_finite, require

DraftedBy = Literal["lookup", "depth", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftingTrace:
    """What was to draft the run's replies.

    Attributes:
        source: "auto" lets the drafter choose at each token.
        draft_model: its name; None without one.
        schedule: the depth schedule of drafts by depth, as JSON, with its source.
    """

    source: Literal["auto", "lookup", "depth", "model"]
    draft_model: str | None = None
    schedule: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTrace:
    """One pass at full depth, which verifies a draft or is a plain step.

    Attributes:
        step: of the first token that it gave.
        tokens: how many it gave: the accepted ones, and, unless one of them ended the reply, one
            that full depth chose by itself. Of the last pass, the reply may lack some: it ended at
            a stop string, or was interrupted.
        source: what drafted; None for a plain step.
        draft_ids: the drafted tokens; none for a plain step, or where the source failed.
        accepted: how many of them were accepted, from the first on.
        draft_ms, verify_ms: milliseconds of the draft and of the pass.
    """

    step: Count
    tokens: Count
    source: DraftedBy | None
    draft_ids: tuple[Count, ...]
    accepted: Count
    draft_ms: NotNegative
    verify_ms: NotNegative

    def __post_init__(self) -> None:
        check_finite(self)
        drafted = len(self.draft_ids)
        require(self.source is not None or not drafted, "a draft has no source")
        require(self.accepted <= drafted, f"accepts {self.accepted} of {drafted} drafted tokens")
        own = self.tokens - self.accepted
        require(own == 1 or (own == 0 < self.tokens), f"gives {own} tokens that were not drafted")

    @property
    def has_rejected(self) -> bool:
        """Whether it threw drafted tokens away."""
        return self.accepted < len(self.draft_ids)

    @property
    def ms(self) -> float:
        return self.draft_ms + self.verify_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceTrace:
    """The first token that differs between a lossless reply and plain decoding.

    Attributes:
        token_id, text: the lossless reply's.
        plain_token_id, plain_text: plain decoding's.
        gap: how far apart their logits are in a plain step, after penalties.
        rounding: the most that a logit changes there if the last are read several in one pass.
    """

    step: Count
    token_id: Count
    text: str
    plain_token_id: Count
    plain_text: str
    gap: NotNegative
    rounding: NotNegative

    def __post_init__(self) -> None:
        check_finite(self)

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding explains it: both logits may move, towards each other."""
        return self.gap <= 2 * self.rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualityTrace:
    """Greedy lossless replies against plain decoding.

    Attributes:
        replies: the number of lossless replies that were compared.
        equal: how many of them have the same tokens.
        difference: of the first one that has others.
    """

    replies: Count
    equal: Count
    difference: DifferenceTrace | None = None

    def __post_init__(self) -> None:
        require(self.equal <= self.replies, "more replies are equal than were compared")
        require(
            (self.equal < self.replies) == (self.difference is not None),
            "the number of equal replies does not fit the difference",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LosslessTrace:
    """How a lossless reply came about.

    Attributes:
        step_ms: milliseconds of a plain step, as measured between the drafts; None before one.
        passes: the passes at full depth, in order.
        skip_order: the order that the prompt decided for drafts by depth; None if the run has one
            for all replies.
        equality: None unless it was asked for, or if the reply was sampled.
    """

    step_ms: Positive | None
    passes: tuple[PassTrace, ...]
    skip_order: tuple[str, ...] | None = None
    equality: EqualityTrace | None = None

    def __post_init__(self) -> None:
        check_finite(self)
