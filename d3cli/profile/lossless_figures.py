"""The figures of lossless replies: drafted, accepted, passes, and where the time went. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from d3cli.profile.trace import ReplyTrace
from d3cli.profile.trace_lossless import DraftedBy, PassTrace

SOURCES: tuple[DraftedBy, ...] = ("lookup", "depth", "model")


@dataclass(frozen=True, slots=True)
class DraftFigures:
    """What one source drafted: tokens, those accepted, drafts, and the seconds these took."""

    drafted: int
    accepted: int
    drafts: int
    draft_s: float


@dataclass(frozen=True, slots=True)
class LosslessFigures:
    """What was drafted and accepted in the recorded run of each reply.

    Attributes:
        drafted, accepted: tokens.
        passes: passes at full depth, plain steps included.
        plain_steps: passes without a draft.
        tokens_per_pass: None without a pass.
        draft_s, verify_s: seconds of drafts and of passes.
        rest_s: seconds of decoding that are neither: text, stop strings.
        predicted: the time of plain steps for these tokens, over the time of decoding. Plain steps
            between the drafts are timed for this. None without one.
        sources: what each source drafted, if it did.
    """

    drafted: int
    accepted: int
    passes: int
    plain_steps: int
    tokens_per_pass: float | None
    draft_s: float
    verify_s: float
    rest_s: float
    predicted: float | None
    sources: dict[str, DraftFigures]

    @property
    def accepted_share(self) -> float | None:
        """The share of drafted tokens that were accepted; None if none was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def times(self) -> list[tuple[str, float]]:
        """What the time of decoding went to, and its seconds."""
        return [("draft", self.draft_s), ("verify", self.verify_s), ("rest", self.rest_s)]


def lossless_figures(replies: Sequence[ReplyTrace]) -> LosslessFigures | None:
    """The figures of these replies together; None if they are not lossless."""
    known = [(reply, reply.lossless) for reply in replies if reply.lossless is not None]
    if not known:
        return None
    passes = [done for _, own in known for done in own.passes]
    steps = sum(max(0, len(reply.tokens) - 1) for reply, _ in known)
    draft_s = math.fsum(done.draft_ms for done in passes) / 1000
    verify_s = math.fsum(done.verify_ms for done in passes) / 1000
    decode_s = math.fsum(reply.repeats[0].decode_s for reply, _ in known if reply.repeats)
    plain_ms = [
        (len(reply.tokens) - 1) * own.step_ms
        for reply, own in known
        if len(reply.tokens) > 1 and own.step_ms is not None
    ]
    return LosslessFigures(
        drafted=sum(len(done.draft_ids) for done in passes),
        accepted=sum(done.accepted for done in passes),
        passes=len(passes),
        plain_steps=sum(done.source is None for done in passes),
        tokens_per_pass=steps / len(passes) if passes else None,
        draft_s=draft_s,
        verify_s=verify_s,
        rest_s=max(0.0, decode_s - draft_s - verify_s),
        predicted=math.fsum(plain_ms) / 1000 / decode_s if plain_ms and decode_s else None,
        sources=_by_source(passes),
    )


def _by_source(passes: Sequence[PassTrace]) -> dict[str, DraftFigures]:
    found: dict[str, DraftFigures] = {}
    for source in SOURCES:
        if own := [done for done in passes if done.source == source]:
            found[source] = DraftFigures(
                drafted=sum(len(done.draft_ids) for done in own),
                accepted=sum(done.accepted for done in own),
                drafts=len(own),
                draft_s=math.fsum(done.draft_ms for done in own) / 1000,
            )
    return found
