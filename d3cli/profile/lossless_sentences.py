"""A lossless run in plain sentences."""

from collections.abc import Iterator, Sequence

from d3cli.base.inert import quoted
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import Schedule
from d3cli.profile.lossless_figures import LosslessFigures
from d3cli.profile.trace import ReplyTrace, Trace, schedule_from
from d3cli.profile.trace_lossless import DifferenceTrace, DraftedBy, EqualityTrace

BY: dict[DraftedBy, str] = {"lookup": "lookup", "depth": "D³", "model": "the draft model"}


def drafts(trace: Trace) -> str:
    """What was to draft; empty unless the run is lossless."""
    asked = trace.lossless
    if asked is None:
        return ""
    by = ["lookup"] if asked.source in ("auto", "lookup") else []
    if asked.draft_model is not None:
        by.append(asked.draft_model)
    schedule = schedule_from(asked.schedule)
    if asked.source in ("auto", "depth") and schedule.units:
        by.append(f"D³: {_schedule(schedule, asked.schedule.get('source'))}")
    if not by:
        return "no drafts: at full depth there is nothing to leave out"
    return f"drafts by {', or '.join(by)}"


def _schedule(schedule: Schedule, source: object) -> str:
    words = schedule.in_words()
    return f"{words} ({Source(str(source)).in_words})" if source in tuple(Source) else words


def in_short(found: LosslessFigures) -> str:
    """Drafted, accepted, tokens for each pass."""
    words = f"drafted {found.drafted:,}"
    if found.accepted_share is not None:
        words += f", accepted {found.accepted:,} ({found.accepted_share:.0%})"
    if found.tokens_per_pass is not None:
        words += f", {found.tokens_per_pass:.2f} tokens a pass"
    return words


def times(found: LosslessFigures) -> str:
    """Where the time of decoding went."""
    whole = sum(seconds for _, seconds in found.times)
    return ", ".join(
        f"{name} {seconds:.2f} s" + (f" ({seconds / whole:.0%})" if whole else "")
        for name, seconds in found.times
    )


def sentences(found: LosslessFigures, trace: Trace, replies: Sequence[ReplyTrace]) -> Iterator[str]:
    """Yields what the figures mean, one finding a sentence."""
    if not found.drafted:
        why = "no draft promised to pay"
        if found.sources:  # its logits are not finite, or leave no token to choose
            why = f"{' and '.join(BY[name] for name in BY if name in found.sources)} found no token"
        yield (
            f"Nothing was drafted: {why}. Each of the {found.passes:,} decode steps is a plain one "
            "at full depth."
        )
    else:
        yield (
            f"Of {found.drafted:,} drafted tokens, full depth accepted {found.accepted:,} "
            f"({found.accepted_share:.1%}). It took {found.passes:,} passes, "
            f"{found.plain_steps:,} of them plain steps, and each gave "
            f"{found.tokens_per_pass:.2f} tokens on average."
        )
        if len(found.sources) > 1:
            each = [
                f"{one.accepted:,} of {one.drafted:,} by {BY[name]}"
                for name in BY
                if (one := found.sources.get(name)) is not None
            ]
            yield f"Accepted were {', '.join(each)}."
    yield f"The time of decoding: {times(found)}."
    yield from _speed(found, replies)
    if trace.compared:
        yield from _equality([one for reply in replies for one in _equalities(reply)], trace)
    yield "Every token ran at full depth, so there is no map of layers and no needed depth."


def _speed(found: LosslessFigures, replies: Sequence[ReplyTrace]) -> Iterator[str]:
    clocks = [reply.clock for reply in replies if reply.clock is not None]
    if clocks:
        low, high = min(one.ratio for one in clocks), max(one.ratio for one in clocks)
        much = f"{low:.2f}×" if len(clocks) == 1 else f"{low:.2f}× to {high:.2f}×"
        if len(clocks) == 1:
            much += f" ({clocks[0].low:.2f} to {clocks[0].high:.2f})"
        yield (
            f"Whole replies were written in turn, plain and lossless: lossless decoding was {much} "
            "as fast."
        )
    elif found.predicted is not None:
        yield (
            f"This is {found.predicted:.2f}× as fast as plain steps would have been, judged by "
            "those that were timed between the drafts."
        )


def _equalities(reply: ReplyTrace) -> list[EqualityTrace]:
    found = reply.lossless
    return [] if found is None or found.equality is None else [found.equality]


def _equality(found: Sequence[EqualityTrace], trace: Trace) -> Iterator[str]:
    if not found:
        if trace.sampling.get("temperature"):
            yield (
                "The replies were sampled, so they have the distribution of plain decoding, not "
                "its tokens."
            )
        return
    replies, equal = sum(one.replies for one in found), sum(one.equal for one in found)
    if equal == replies:
        yield f"All {replies:,} lossless replies have the tokens of plain decoding."
        return
    yield f"{equal:,} of {replies:,} lossless replies have the tokens of plain decoding."
    for one in found:
        if one.difference is not None:
            yield _difference(one.difference, trace.model.dtype)


def _difference(found: DifferenceTrace, dtype: str) -> str:
    verdict = (
        "so it is a near-tie"
        if found.is_near_tie
        else "which does not explain it: please report this"
    )
    return (
        f"The first token that differs is {found.step:,}: {quoted(found.text)} instead of "
        f"{quoted(found.plain_text)}. Their logits are {found.gap:.3g} apart, and rounding in "
        f"{dtype} changes logits there by up to {found.rounding:.3g}, {verdict}."
    )
