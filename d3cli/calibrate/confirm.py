"""The unseen half of a calibration: a test in sequence, and constant depth against decay.

Every candidate that may be tested was measured while its form of the weights was loaded. Here these
figures are read in an order that was set without them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from d3cli.base.errors import Setting
from d3cli.calibrate.race import Tried
from d3cli.calibrate.result import DecayVerdict, Measured, Outcome, Sentence, UnseenDrop
from d3cli.calibrate.search import Search
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import MIN_EVIDENCE, MIN_SAVED, Candidate, Sort, front, share_at_floor
from d3cli.calibrate.unseen import Sealed
from d3cli.kernels.quantization import Quantization
from d3cli.scoring.intervals import mean_loss, measure_drop

# A larger KL, in multiples of the target, means that the text does not suit the model: there, the
# schedule makes it a different model, even where the perplexity hardly changes.
MAX_KL = 20
# Constant depth and decay are compared where their times differ by no more than this share.
SAME_TIME = 0.005
# The most schedules that are tested on the unseen half.
MAX_TESTED = 6
OTHER_TEXT = ("(", Setting("self_replies"), ", ", Setting("data"), ")")


@dataclass(frozen=True, slots=True)
class Pair:
    """A constant and a decaying depth that take the same time."""

    static: Candidate
    decaying: Candidate


def confirm(
    outcome: Outcome,
    settings: CalibrationSettings,
    sequence: Sequence[Candidate],
    sealed: Sealed,
    pairs: Mapping[Quantization | None, Pair],
) -> None:
    """Tests candidates and fills the rest of an outcome.

    Fixed-sequence testing: from the safest to the fastest, and the first that fails ends the test.

    Args:
        sequence: as from `safest_first`.
        sealed: their figures on the unseen half, and those of `pairs`.
        pairs: what to compare in each form of the weights.
    """
    if not sequence:
        outcome.why_not, outcome.text_fits = _nothing_to_test(outcome.tried.values(), settings)
        return
    held = _test(outcome, settings, sequence, sealed)
    if held is None:
        drop = outcome.tested[0].drop
        outcome.why_not = (
            f"the safest schedule found costs {drop.value:+.2%} on unseen text, at most "
            f"{drop.high:+.2%} at {settings.confidence:.0%} confidence",
        )
        return
    if held.kl > MAX_KL * math.log1p(settings.target_drop):
        outcome.text_fits = False
        outcome.why_not = (
            f"the text does not suit the model: full depth's perplexity on it is "
            f"{held.full_perplexity:.3g}, and the schedule that costs {held.drop.value:+.2%} "
            f"has a KL divergence of {held.kl:.2g} nats per token; try other text ",
            *OTHER_TEXT,
        )
        return
    outcome.chosen = held
    outcome.rivals = _rivals(held, settings.target_drop, sealed.values())
    pair = pairs.get(held.candidate.quantization)
    if pair is not None:
        outcome.verdict = _verdict(pair, sealed, settings)
    elif not outcome.no_verdict:
        outcome.no_verdict = _why_no_pair(outcome, held)


def _why_no_pair(outcome: Outcome, chosen: Measured) -> str:
    quantization = chosen.candidate.quantization
    if any(one.quantization == quantization and not one.searched for one in outcome.forms):
        return "schedules were not searched in the form that was chosen"
    return "no constant and no decaying depth take the same time"


def _rivals(chosen: Measured, target: float, sealed: Iterable[Measured]) -> dict[Sort, Measured]:
    """The fastest of each sort that held, none faster than the chosen one."""
    held = [
        one
        for one in sealed
        if one.drop.high <= target and one.candidate.speed <= chosen.candidate.speed
    ]
    held.sort(key=lambda one: one.candidate.speed)
    found = {one.candidate.sort: one for one in held} | {chosen.candidate.sort: chosen}
    return {sort: found[sort] for sort in Sort if sort in found}


def _verdict(pair: Pair, sealed: Sealed, settings: CalibrationSettings) -> DecayVerdict:
    static, decaying = sealed[pair.static.key], sealed[pair.decaying.key]
    difference = [b - a for a, b in zip(static.losses, decaying.losses, strict=True)]
    return DecayVerdict(static, decaying, measure_drop(difference, settings.confidence))


def safest_first(
    tried: Iterable[Tried], target: float, responses: Sequence[int]
) -> list[Candidate]:
    """The candidates worth testing on responses of these lengths, the safest and slowest first.

    Each held on the search half; no other one is both faster and has a lower bound. Full depth in
    fewer bits competes with its like alone: a schedule that drops units and does better on the
    search half did so by luck, and if it were tested in its place and failed, nothing would be
    left.
    """
    held = [
        one
        for one in tried
        if -target <= one.drop.high <= target
        and one.candidate.saved >= MIN_SAVED
        and share_at_floor(one.candidate.schedule, responses) >= MIN_EVIDENCE / 2
    ]
    kept: list[Tried] = []
    for one in sorted(held, key=lambda t: (-t.candidate.speed, t.drop.high)):
        is_full = one.candidate.sort is Sort.FULL
        rivals = [k for k in kept if not is_full or k.candidate.sort is Sort.FULL]
        if all(one.drop.high < rival.drop.high for rival in rivals):
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
        much = f"at most {saved:.1%} of the time" if saved >= 0.0005 else "no time"
        return (f"the schedules within the target save {much}, net of repair",), True
    costs = (
        f"the safest schedule tried, {best.candidate.speed:.2f}× as fast, costs "
        f"{best.drop.value:+.2%} on {best.documents} documents, at most {best.drop.high:+.2%} "
        f"at {settings.confidence:.0%} confidence"
    )
    return (costs,), True


def _test(
    outcome: Outcome,
    settings: CalibrationSettings,
    sequence: Sequence[Candidate],
    sealed: Sealed,
) -> Measured | None:
    """The last candidate that held; None where the first one failed."""
    last = None
    for candidate in sequence:
        measured = sealed[candidate.key]
        held = measured.drop.high <= settings.target_drop
        outcome.tested.append(UnseenDrop(candidate, measured.drop, held))
        if not held:
            break
        last = measured
    return last


def constant_and_decaying(search: Search, near: Candidate) -> Pair | None:
    """The best static depth near a candidate's time, and the best decaying one at its time.

    None where there is none; the outcome then says why.
    """
    if search.clock.elapsed > search.plan.seconds:
        search.outcome.no_verdict = "there was no time to compare constant depth with decay"
        return None
    decaying = [candidate for candidate in search.pool if not candidate.is_static]

    def rivals(flat: Candidate) -> list[Candidate]:
        return front([c for c in decaying if _same_time(c, flat)])

    static = [c for c in front([c for c in search.pool if c.is_static]) if rivals(c)]
    if not static:
        return None
    flat = min(static, key=lambda c: abs(c.speed - near.speed))
    # The first ones on the front have the lowest predicted loss; the search half picks one.
    count = len(search.plan.search)
    losses = search.evaluator.losses
    return Pair(flat, min(rivals(flat)[:3], key=lambda c: mean_loss(losses(c.schedule, count))))


def _same_time(one: Candidate, other: Candidate) -> bool:
    return abs(one.speed / other.speed - 1) <= SAME_TIME
