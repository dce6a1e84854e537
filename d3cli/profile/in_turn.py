"""A lossless reply and plain decoding at full depth, in turn: their times, and their tokens.

Whole replies are written, since a draft's length depends on what was accepted before it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from d3cli.decode.reply import Reply
from d3cli.profile.run import Run
from d3cli.profile.trace_lossless import DifferenceTrace, EqualityTrace
from d3cli.profile.trace_times import ClockTrace
from d3cli.scoring.intervals import median_interval
from d3cli.scoring.near_tie import gap_and_rounding


@dataclass(slots=True)
class InTurn:
    """Plain replies (A) and lossless replies (B) to one prompt, written as ABBA, `rounds` times.

    Iterate it to measure; it yields the share that is done.

    Args:
        first: the lossless reply that is recorded.
        start: begins a lossless reply (True) or a plain one.

    Attributes:
        plain, lossless: the replies so far.
    """

    first: Run
    start: Callable[[bool], Run]
    rounds: int
    plain: list[Run] = field(default_factory=list)
    lossless: list[Run] = field(default_factory=list)

    def __iter__(self) -> Iterator[float]:
        expected, replies = len(self.first.reply.tokens), 4 * self.rounds
        for number in range(replies):
            is_lossless = number % 4 in (1, 2)
            run = self.start(is_lossless)
            (self.lossless if is_lossless else self.plain).append(run)
            for chunk in run:
                yield (number + min(1.0, (chunk.token.step + 1) / expected)) / replies

    def clock(self) -> ClockTrace | None:
        """Plain decoding's time over the lossless replies'; None if a reply has no decode step.

        Times are those of a token, since sampled replies differ in length.
        """
        plain = [run.decode_s / len(run.ms) for run in self.plain if run.ms]
        own = [run.decode_s / len(run.ms) for run in self.lossless if run.ms]
        pairs = [pair for pair in zip(plain, own, strict=False) if min(pair) > 0]
        if len(pairs) < 2 * self.rounds:
            return None
        ratios = [one / other for one, other in pairs]
        low, high = median_interval(ratios)
        return ClockTrace(
            steps=len(self.first.ms),
            rounds=self.rounds,
            full_ms=1000 * median(plain),
            own_ms=1000 * median(own),
            ratios=tuple(ratios),
            ratio=median(ratios),
            low=low,
            high=high,
        )

    def equality(self) -> EqualityTrace | None:
        """Whether the tokens are plain decoding's; None if they were sampled."""
        plain = self.plain[0]
        if not plain.reply.sampling.is_greedy:
            return None
        runs = [self.first, *self.lossless]
        others = [run for run in runs if run.token_ids != plain.token_ids]
        return EqualityTrace(
            replies=len(runs),
            equal=len(runs) - len(others),
            difference=_difference(others[0].reply, plain.reply) if others else None,
        )


def _difference(reply: Reply, plain: Reply) -> DifferenceTrace:
    """The first token in which two replies to one prompt differ; neither is a part of the other."""
    pairs = list(zip(reply.tokens, plain.tokens, strict=False))
    step = next(at for at, (ours, theirs) in enumerate(pairs) if ours.token_id != theirs.token_id)
    ours, theirs = (token.token_id for token in pairs[step])
    before = [*reply.prompt_ids, *_ids(reply)[:step]]
    gap, rounding = gap_and_rounding(reply.model, plain.new_sampler(), before, ours, theirs)
    return DifferenceTrace(
        step=step,
        token_id=ours,
        text=reply.pieces[step],
        plain_token_id=theirs,
        plain_text=plain.pieces[step],
        gap=gap,
        rounding=rounding,
    )


def _ids(reply: Reply) -> Sequence[int]:
    return [token.token_id for token in reply.tokens]
