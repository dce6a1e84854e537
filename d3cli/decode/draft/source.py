"""A draft: tokens that full depth may choose next, from something cheaper than full depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from d3cli.base.errors import GenerationError
from d3cli.decode.loop import SourceName, log_normalizer
from d3cli.decode.sampler import Sampler
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import DEFAULT_RESERVE, KVCache


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens to verify.

    Attributes:
        token_ids: the tokens; none for a plain step, or where a source failed.
        source: what drafted them; None for a plain step.
        kind: see `Offer`.
        probabilities: the distribution ``[V]`` that each was drawn from; empty if none was drawn,
            as in a greedy reply, or where they were looked up.
        bytes_read: weights read to make it, in bytes.
    """

    token_ids: Sequence[int] = ()
    source: SourceName | None = None
    kind: int = 0
    probabilities: Sequence[Tensor] = ()
    bytes_read: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """One pass at full depth in a lossless reply.

    Attributes:
        step: of the first token that it gave.
        tokens: how many it gave: the accepted ones, and, unless one of them ended the reply, one
            that full depth chose by itself.
        source: what drafted; None for a plain step.
        kind: see `Offer`.
        draft_ids: the drafted tokens; none for a plain step, or where the source failed.
        accepted: how many of them were accepted, from the first on.
        draft_s, verify_s: seconds that the draft and the pass took.
    """

    step: int
    tokens: int
    source: SourceName | None
    kind: int
    draft_ids: tuple[int, ...]
    accepted: int
    draft_s: float
    verify_s: float


@dataclass(frozen=True, slots=True)
class ReplyContext:
    """The reply that a source drafts for.

    Attributes:
        token_ids: the prompt and the reply so far. It grows with the reply.
        cache: the KV cache of the model that verifies. It holds all of them but the last one.
        sampler: draws the tokens of a draft, as the reply's own sampler does, with other chance.
        schedule: the depth schedule that drafts, where a source needs one.
        reserve: tokens of the reply that a KV cache should have room for.
    """

    token_ids: Sequence[int]
    cache: KVCache
    sampler: Sampler
    schedule: DepthSchedule
    reserve: int = DEFAULT_RESERVE


class Drawing:
    """A draft that is drawn token by token, from logits, as the reply's own tokens are.

    Attributes:
        token_ids: the prompt, the reply and the draft so far.
    """

    def __init__(self, reply: ReplyContext) -> None:
        self.token_ids = list(reply.token_ids)
        self._sampler, self._start = reply.sampler, len(self.token_ids)
        self._probabilities: list[Tensor] = []

    def add(self, logits: Tensor) -> bool:
        """Draws the next token from ``logits`` ``[V]``; False if they leave none to draw.

        The reply goes on then, since full depth's own logits may leave one.
        """
        try:
            log_normalizer(logits, len(self.token_ids) - self._start)
            token_id, drawn_from = self._sampler.draft(logits, self.token_ids)
        except GenerationError:
            return False
        self.token_ids.append(token_id)
        self._probabilities += drawn_from
        return True

    def draft(self, source: SourceName, bytes_read: int) -> Draft:
        """The tokens so far."""
        drawn = self.token_ids[self._start :]
        return Draft(drawn, source, probabilities=self._probabilities, bytes_read=bytes_read)


class Offer(NamedTuple):
    """What a source could draft now.

    Attributes:
        kind: what its acceptance depends on; each kind has an estimate of its own.
        most: the most tokens; None for as many as asked for.
        next_id: the first token, where it is known without drafting. Such a source is watched: it
            is proven right or wrong by tokens that it did not draft.
    """

    kind: int = 0
    most: int | None = None
    next_id: int | None = None


class DraftSource(Protocol):
    """Something that drafts. It keeps nothing of a reply that is not its own.

    It may be left at any point by an exception, and is then used again from `begin` on.
    """

    @property
    def name(self) -> SourceName: ...

    @property
    def cost(self) -> float:
        """What drafting a token costs before it was measured, in steps at full depth."""
        ...

    def begin(self, reply: ReplyContext) -> None:
        """Starts with a new reply."""
        ...

    def offer(self, reply: ReplyContext) -> Offer | None:
        """What it could draft now; None for nothing. This takes microseconds."""
        ...

    def draft(self, reply: ReplyContext, length: int) -> Draft:
        """Drafts up to `length` tokens; none only where it fails. `offer` was called before."""
        ...
