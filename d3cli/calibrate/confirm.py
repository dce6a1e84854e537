"""The unseen half of a calibration: a test in sequence, then constant depth against decay."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np

from d3cli.base.errors import Setting
from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.race import Tried
from d3cli.calibrate.result import (
    CalibrationProgress,
    CalibrationSettings,
    DecayVerdict,
    Measured,
    Sentence,
    UnseenDrop,
)
from d3cli.calibrate.search import Search
from d3cli.calibrate.space import MIN_EVIDENCE, MIN_SAVED, Candidate, front, share_at_floor
from d3cli.calibrate.unit_order import mean_ratios
from d3cli.depth.schedule import TOLERANCE
from d3cli.scoring.compare import Comparison, compare
from d3cli.scoring.intervals import drop_by_position, mean_loss, measure_drop

# A larger KL, in multiples of the target, means that the text does not suit the model: there, the
# schedule makes it a different model, even where the perplexity hardly changes.
MAX_KL = 20
# Constant depth and decay are compared where their byte ratios differ by no more than this share.
SAME_BYTES = 0.005
# The most schedules that are tested on the unseen half.
MAX_TESTED = 6
OTHER_TEXT = ("(", Setting("self_replies"), ", ", Setting("data"), ")")


def confirm(search: Search) -> Iterator[CalibrationProgress]:
    """Tests what a search found and fills the rest of its outcome.

    Fixed-sequence testing: each schedule is scored once on the unseen half, from the safest to the
    fastest, and the first that fails ends the test.
    """
    settings, outcome, texts = search.settings, search.outcome, search.plan.unseen
    responses = [len(document.response_ids) for document in texts]
    sequence = safest_first(outcome.tried.values(), settings.target_drop, responses)
    if not sequence:
        outcome.why_not, outcome.text_fits = _nothing_to_test(outcome.tried.values(), settings)
        return
    unseen = Evaluator(search.model, texts, [len(texts)], search.clock)
    unseen.share_first_layers(candidate.schedule for candidate in sequence)
    held = yield from _test(search, unseen, sequence)
    if held is None:
        drop = outcome.tested[0].drop
        outcome.why_not = (
            f"the safest schedule found costs {drop.value:+.2%} on unseen text, at most "
            f"{drop.high:+.2%} at {settings.confidence:.0%} confidence",
        )
        return
    pair = _constant_and_decaying(search, held)
    yield CalibrationProgress("comparison with full depth", search.clock.share)
    chosen, *measured = _measure(unseen, [held, *pair], settings)
    if chosen.kl > MAX_KL * math.log1p(settings.target_drop):
        outcome.text_fits = False
        outcome.why_not = (
            f"the text does not suit the model: full depth's perplexity on it is "
            f"{chosen.full_perplexity:.3g}, and the schedule that costs {chosen.drop.value:+.2%} "
            f"has a KL divergence of {chosen.kl:.2g} nats per token; try other text ",
            *OTHER_TEXT,
        )
        return
    outcome.chosen = chosen
    if measured:
        static, decaying = (unseen.losses(c.schedule, len(texts)) for c in pair)
        difference = [b - a for a, b in zip(static, decaying, strict=True)]
        outcome.verdict = DecayVerdict(
            measured[0], measured[1], measure_drop(difference, settings.confidence)
        )


def safest_first(
    tried: Iterable[Tried], target: float, responses: Sequence[int]
) -> list[Candidate]:
    """The candidates worth testing on responses of these lengths, the safest and slowest first.

    Each held on the search half; no other one both saves more bytes and has a lower bound.
    """
    held = [
        one
        for one in tried
        if -target <= one.drop.high <= target
        and one.candidate.saved >= MIN_SAVED
        and share_at_floor(one.candidate.schedule, responses) >= MIN_EVIDENCE / 2
    ]
    kept: list[Tried] = []
    for one in sorted(held, key=lambda t: (-t.candidate.byte_ratio, t.drop.high)):
        if not kept or one.drop.high < kept[-1].drop.high:
            kept.append(one)
    if len(kept) > MAX_TESTED:  # keep the fastest; spread the others evenly
        step = (len(kept) - 1) / (MAX_TESTED - 1)
        kept = [kept[round(i * step)] for i in range(MAX_TESTED)]
    return [one.candidate for one in kept[::-1]]


def _nothing_to_test(
    tried: Iterable[Tried], settings: CalibrationSettings
) -> tuple[Sentence, bool]:
    """Why no schedule is worth testing, and whether the text suits the model."""
    if not (safest := sorted(tried, key=lambda one: one.drop.high)):
        return ("no unit can be dropped at this target",), True
    target, best = settings.target_drop, safest[0]
    if best.drop.high < -target:
        better = (
            "the text does not suit the model: without some of its units the model does better on "
            f"it ({best.drop.value:+.2%}); try other text "
        )
        return (better, *OTHER_TEXT), False
    if best.drop.high <= target:
        saved = max(one.candidate.saved for one in safest if one.drop.high <= target)
        much = f"at most {saved:.1%} of the bytes" if saved >= 0.0005 else "no bytes"
        return (f"the schedules within the target save {much}, net of repair",), True
    costs = (
        f"the safest schedule tried, byte ratio {best.candidate.byte_ratio:.2f}, costs "
        f"{best.drop.value:+.2%} on {best.documents} documents, at most {best.drop.high:+.2%} "
        f"at {settings.confidence:.0%} confidence"
    )
    return (costs,), True


def _test(
    search: Search, unseen: Evaluator, sequence: Sequence[Candidate]
) -> Generator[CalibrationProgress, None, Candidate | None]:
    """The last candidate that held; None where the first one failed."""
    last = None
    for candidate in sequence:
        yield CalibrationProgress(
            f"unseen text: byte ratio {candidate.byte_ratio:.2f}", search.clock.share
        )
        losses = unseen.losses(candidate.schedule, len(unseen.documents))
        drop = measure_drop(losses, search.settings.confidence)
        held = drop.high <= search.settings.target_drop
        search.outcome.tested.append(UnseenDrop(candidate, drop, held))
        if not held:
            break
        last = candidate
    return last


def _constant_and_decaying(
    search: Search, chosen: Candidate
) -> tuple[Candidate, Candidate] | tuple[()]:
    """The best static depth near the chosen one's bytes, and the best decaying one at its bytes.

    Empty where there is none; the outcome then says why.
    """
    if search.clock.elapsed > search.plan.seconds:
        search.outcome.no_verdict = "there was no time to compare constant depth with decay"
        return ()
    decaying = [candidate for candidate in search.pool if not candidate.is_static]

    def rivals(flat: Candidate) -> list[Candidate]:
        return front([c for c in decaying if _same_bytes(c, flat)])

    static = [c for c in front([c for c in search.pool if c.is_static]) if rivals(c)]
    if not static:
        search.outcome.no_verdict = "no constant and no decaying depth save the same bytes"
        return ()
    flat = min(static, key=lambda c: abs(c.byte_ratio - chosen.byte_ratio))
    # The first ones on the front have the lowest predicted loss; the search half picks one.
    count = len(search.plan.search)
    losses = search.evaluator.losses
    return flat, min(rivals(flat)[:3], key=lambda c: mean_loss(losses(c.schedule, count)))


def _same_bytes(one: Candidate, other: Candidate) -> bool:
    return abs(one.byte_ratio / other.byte_ratio - 1) <= SAME_BYTES


def _measure(
    unseen: Evaluator, candidates: Sequence[Candidate], settings: CalibrationSettings
) -> list[Measured]:
    """Candidates on the unseen half, beside full depth."""
    compared = compare(unseen.model, unseen.documents, [c.schedule for c in candidates])
    return [_measured(unseen, *one, settings) for one in zip(candidates, compared, strict=True)]


def _measured(
    unseen: Evaluator,
    candidate: Candidate,
    compared: Sequence[Comparison],
    settings: CalibrationSettings,
) -> Measured:
    losses = unseen.losses(candidate.schedule, len(unseen.documents))
    tokens = sum(map(len, losses))
    schedules = unseen.ordered(candidate.schedule)
    at_floor = np.concatenate(
        [
            loss[(c.depths <= schedule.floor + TOLERANCE).numpy() & bool(schedule.skip_order)]
            for loss, c, schedule in zip(losses, compared, schedules, strict=True)
        ]
    )
    layer_ratio, byte_ratio = mean_ratios(
        schedules, settings.reply_tokens, unseen.model.weight_bytes
    )
    return Measured(
        candidate,
        len(losses),
        tokens,
        measure_drop(losses, settings.confidence),
        tuple(drop_by_position(losses)),
        kl=sum(float(c.kl.sum()) for c in compared) / tokens,
        same_top=sum(int(c.same_top.sum()) for c in compared) / tokens,
        mean_rank=sum(int(c.ranks.sum()) for c in compared) / tokens,
        full_perplexity=math.exp(-sum(float(c.full_log_probs.sum()) for c in compared) / tokens),
        floor_tokens=len(at_floor),
        floor_drop=math.expm1(float(at_floor.mean())) if len(at_floor) else 0.0,
        layer_ratio=layer_ratio,
        byte_ratio=byte_ratio,
    )
