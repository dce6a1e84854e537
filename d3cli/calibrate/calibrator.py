"""Finds the fastest depth schedule within a quality target, and confirms it on unseen text.

Order, search, test: a skip order is measured on one half of the documents, schedules over it are
raced there, and what survives is tested on the other half, once, from the safest to the fastest.
Knows nothing of files, options or terminals.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from d3cli.base.errors import CalibrationError, UsageError
from d3cli.calibrate.budget import Plan, make_plan, measure_pace
from d3cli.calibrate.evaluator import Clock, Evaluator, OutOfTime
from d3cli.calibrate.influence import measure_influence, order_by_influence
from d3cli.calibrate.order import GreedyOrder, units_of
from d3cli.calibrate.own_replies import (
    FEWEST_PROMPTS,
    FULL_DEPTH,
    MOST_PROMPTS,
    judge,
    surprise,
    write_reply,
)
from d3cli.calibrate.race import Tried, race
from d3cli.calibrate.result import CalibrationSettings, DecayVerdict, Measured, Outcome
from d3cli.calibrate.space import (
    LEAST_EVIDENCE,
    Candidate,
    StaticLosses,
    at_least_depth,
    candidates,
    front,
    score_prefixes,
)
from d3cli.calibrate.texts import split
from d3cli.depth.schedule import TOLERANCE, DepthSchedule
from d3cli.depth.units import UnitKind
from d3cli.model.model import LoadedModel
from d3cli.scoring.compare import compare
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Losses, drop_by_position, measure_drop, measure_rise, total

# A schedule that saves less of the bytes, net of repair, is not worth its drop.
LEAST_SAVED = 0.02
# Units that lose, at constant depth, more than so many times the target are of no use to any
# schedule: a tenth of the tokens at least would run without them.
MOST_LOST = 4
# A KL of so many times the target says that D³ is another model by then, whatever the perplexity of
# this text says: it is text that the model itself does not know.
MOST_KL = 20
# Constant depth and decay are compared where their bytes differ by no more than this.
SAME_BYTES = 0.005
# Of the time, what is kept for free-running replies where they are asked for.
REPLIES_SHARE = 0.4
# Schedules tested on the unseen half, at most.
MOST_TESTED = 6


@dataclass(frozen=True, slots=True)
class Progress:
    """What is being done, and how much of the whole is done."""

    doing: str
    share: float


class Calibrator:
    """One calibration. Iterate it for its progress; then ask for its `outcome`.

    Making one takes a few passes, which measure how fast the model is here: `plan` says how long
    the search will take and what it leaves out for it.

    Args:
        began: when the clock of `max_seconds` started, by `time.monotonic`; None for now.
        all_documents: use them all, however long it takes.

    Raises:
        UsageError: the model cannot skip the units asked for.
    """

    def __init__(
        self,
        model: LoadedModel,
        documents: Sequence[Document],
        settings: CalibrationSettings,
        began: float | None = None,
        all_documents: bool = False,
    ) -> None:
        self.model, self.settings, self.outcome = model, settings, Outcome()
        self._began = time.monotonic() if began is None else began
        if settings.reply_tokens > model.context_length:
            raise UsageError(
                f"--reply-tokens is {settings.reply_tokens:,}, and the model's context holds "
                f"{model.context_length:,}",
                "give fewer",
            )
        kinds = _kinds(model, settings.units)
        search, unseen = split(documents, settings.seed)
        left = settings.max_seconds - self._elapsed()
        self.plan: Plan = make_plan(
            search,
            unseen,
            units={kind: len(units_of(model, kind)) for kind in kinds},
            order=settings.order,
            pace=measure_pace(model, search),
            seconds=left * (1 - REPLIES_SHARE) if settings.replies else left,
            all_kinds=settings.units != "auto",
            all_documents=all_documents,
        )
        if self.plan.left_out:
            self.outcome.cut.append(self.plan.left_out)
        self._search, self._unseen = self.plan.search, self.plan.unseen
        self._clock = Clock(self.plan.search_deadline)  # begins when the search does
        self._pools: dict[UnitKind, list[Candidate]] = {}

    def __iter__(self) -> Iterator[Progress]:
        self._clock = Clock(self.plan.search_deadline)
        evaluator = Evaluator(self.model, self._search, self.plan.stages, self._clock)
        ended_early = False
        for number, kind in enumerate(self.plan.kinds):
            left = self.plan.search_deadline - self._clock.elapsed
            ends = self._clock.elapsed + left / (len(self.plan.kinds) - number)
            try:
                yield from self._search_kind(kind, evaluator, ends)
            except OutOfTime:
                ended_early = True
                self.outcome.cut.append(f"the search through {kind}s ended early")
        if ended_early and not self.outcome.tried:
            raise CalibrationError(
                f"{self.settings.max_seconds:.0f} seconds were over before any schedule was tried",
                "raise --max-time, or give fewer --documents",
            )
        self._clock.deadline = float("inf")  # a test that has begun is finished
        yield from self._test(evaluator)
        if self.settings.replies and self.outcome.chosen is not None:
            yield from self._judge_replies(self.outcome.chosen.candidate)
        self.outcome.seconds = self._elapsed()

    def _progress(self, doing: str) -> Progress:
        return Progress(doing, min(0.99, self._clock.scored / self.plan.positions))

    def _search_kind(self, kind: UnitKind, evaluator: Evaluator, ends: float) -> Iterator[Progress]:
        target = self.settings.target_drop
        yield self._progress(f"{kind}s: influence")
        few, more, _ = self.plan.stages
        units = units_of(self.model, kind)
        influence = measure_influence(self.model, self._search[:few], units)
        self.outcome.influence |= influence
        order = order_by_influence(self.model, influence)
        most_lost = MOST_LOST * target
        if self.plan.greedy:
            self._clock.deadline = (self._clock.elapsed + ends) / 2  # the race needs the rest
            greedy = GreedyOrder(self.model, evaluator, few, order, most_lost)
            for schedule in greedy:
                yield self._progress(f"{kind}s: without {' '.join(schedule.skip_order)}")
            if greedy.cut:
                self.outcome.cut.append(f"the order of {kind}s is greedy in part")
                greedy.order += [unit for unit in order if unit not in greedy.order]
            order = greedy.order
        self._clock.deadline = ends
        losses: list[Losses] = []
        for prefix in score_prefixes(self.model, evaluator, order, more, most_lost):
            losses.append(prefix)
            yield self._progress(f"{kind}s: static, {len(losses) - 1} dropped")
        static = StaticLosses(tuple(order[: len(losses) - 1]), losses)
        self.outcome.orders[kind] = static.order
        if not static.order:
            return
        pool = candidates(self.model, kind, static, self.settings.reply_tokens)
        self._pools[kind] = pool
        if not pool:
            return
        self._start_behind(evaluator, min(c.schedule.core_first for c in pool))
        for tried in race(evaluator, pool, static, target, self.settings.confidence):
            self.outcome.tried[tried.candidate.schedule] = tried
            schedule = tried.candidate.schedule
            yield self._progress(
                f"{kind}s: alpha {schedule.alpha:.6g} from {schedule.start} on "
                f"{tried.documents} documents, {tried.drop.value:+.2%}"
            )

    def _start_behind(self, evaluator: Evaluator, core_first: int) -> None:
        """Runs the first layers, which no schedule from now on drops, once for all of them."""
        full = DepthSchedule.full(self.model.num_layers)
        evaluator.remember(full, [core_first - 1] if core_first else [])

    def _test(self, evaluator: Evaluator) -> Iterator[Progress]:
        """Fixed-sequence testing on the unseen half: each candidate once, the safest first."""
        target, confidence = self.settings.target_drop, self.settings.confidence
        sequence = self._sequence()
        if not sequence:
            self.outcome.why_not = self._nothing_found()
            return
        unseen = Evaluator(self.model, self._unseen, [len(self._unseen)], self._clock)
        self._start_behind(unseen, min(t.candidate.schedule.core_first for t in sequence))
        held: Candidate | None = None
        losses: dict[DepthSchedule, Losses] = {}
        for tried in sequence:
            candidate = tried.candidate
            yield self._progress(f"unseen text: byte ratio {candidate.byte_ratio:.2f}")
            losses[candidate.schedule] = unseen.losses(candidate.schedule, len(self._unseen))
            drop = measure_drop(losses[candidate.schedule], confidence)
            self.outcome.tested.append((candidate, drop, drop.high <= target))
            if drop.high > target:
                break
            held = candidate
        if held is None:
            _, drop, _ = self.outcome.tested[0]
            self.outcome.why_not = (
                f"the safest schedule found costs {drop.value:+.2%} on unseen text, at most "
                f"{drop.high:+.2%} at {confidence:.0%} confidence"
            )
            return
        pair = self._constant_and_decaying(held, evaluator)
        yield self._progress("beside full depth")
        for candidate in (held, *pair):
            if candidate.schedule not in losses:
                found = unseen.losses(candidate.schedule, len(self._unseen))
                losses[candidate.schedule] = found
        chosen, *measured = self._measure([held, *pair], losses)
        if chosen.kl > MOST_KL * math.log1p(target):
            self.outcome.why_not = (
                f"full depth's perplexity on this text is {chosen.full_perplexity:.3g}, and what "
                f"costs {chosen.drop.value:+.2%} of it departs by a KL of {chosen.kl:.2g} nats a "
                "token: the text does not suit the model (--self-replies, --data)"
            )
            return
        self.outcome.chosen = chosen
        if measured:
            static, decaying = (losses[candidate.schedule] for candidate in pair)
            difference = [b - a for a, b in zip(static, decaying, strict=True)]
            self.outcome.verdict = DecayVerdict(
                measured[0], measured[1], measure_drop(difference, confidence)
            )

    def _sequence(self) -> list[Tried]:
        """What held on the search half, the slowest and safest first."""
        responses = [len(document.response_ids) for document in self._unseen]
        held = [
            tried
            for tried in self.outcome.tried.values()
            if -self.settings.target_drop <= tried.drop.high <= self.settings.target_drop
            and 1 - 1 / tried.candidate.byte_ratio >= LEAST_SAVED
            and at_least_depth(tried.candidate.schedule, responses) >= LEAST_EVIDENCE / 2
        ]
        kept: list[Tried] = []
        for tried in sorted(held, key=lambda t: (-t.candidate.byte_ratio, t.drop.high)):
            if not kept or tried.drop.high < kept[-1].drop.high:
                kept.append(tried)
        if len(kept) > MOST_TESTED:  # the fastest always; the others evenly spread
            step = (len(kept) - 1) / (MOST_TESTED - 1)
            kept = [kept[round(i * step)] for i in range(MOST_TESTED)]
        return kept[::-1]

    def _nothing_found(self) -> str:
        if not self.outcome.tried:
            return "no unit can be dropped at this target"
        best = min(self.outcome.tried.values(), key=lambda t: t.drop.high)
        if best.drop.high < -self.settings.target_drop:
            return (
                f"on this text the model does better without parts of it ({best.drop.value:+.2%}), "
                "so it does not suit the model (--self-replies, --data)"
            )
        if best.drop.high <= self.settings.target_drop:
            fastest = max(
                t.candidate.byte_ratio
                for t in self.outcome.tried.values()
                if t.drop.high <= self.settings.target_drop
            )
            return f"what keeps within the target saves {1 - 1 / fastest:.1%} of the bytes at most"
        return (
            f"the safest schedule tried, byte ratio {best.candidate.byte_ratio:.2f}, costs "
            f"{best.drop.value:+.2%} on {best.documents} documents, at most {best.drop.high:+.2%} "
            f"at {self.settings.confidence:.0%} confidence"
        )

    def _measure(
        self, candidates: Sequence[Candidate], losses: Mapping[DepthSchedule, Losses]
    ) -> list[Measured]:
        """Candidates on the unseen half, beside full depth."""
        schedules = [candidate.schedule for candidate in candidates]
        measured = []
        for candidate, compared in zip(
            candidates, compare(self.model, self._unseen, schedules), strict=True
        ):
            own = losses[candidate.schedule]
            tokens = sum(map(len, own))
            full = sum(float(c.full_log_probs.sum()) for c in compared)
            floor = candidate.schedule.floor + TOLERANCE
            at_floor = np.concatenate(
                [loss[c.depths.numpy() <= floor] for loss, c in zip(own, compared, strict=True)]
            )
            measured.append(
                Measured(
                    candidate,
                    len(own),
                    tokens,
                    measure_drop(own, self.settings.confidence),
                    tuple(drop_by_position(own)),
                    kl=sum(float(c.kl.sum()) for c in compared) / tokens,
                    same_top=sum(int(c.same_top.sum()) for c in compared) / tokens,
                    mean_rank=sum(int(c.ranks.sum()) for c in compared) / tokens,
                    full_perplexity=math.exp(-full / tokens),
                    floor_tokens=len(at_floor),
                    floor_drop=math.expm1(float(at_floor.mean())) if len(at_floor) else 0.0,
                )
            )
        return measured

    def _constant_and_decaying(
        self, chosen: Candidate, evaluator: Evaluator
    ) -> tuple[Candidate, Candidate] | tuple[()]:
        """The best static depth at the chosen one's bytes, and the best decaying one at those."""
        if self._clock.elapsed > self.plan.seconds:
            self.outcome.no_verdict = "there was no time to compare constant depth with decay"
            return ()
        pool = [candidate for pool in self._pools.values() for candidate in pool]
        decaying = [candidate for candidate in pool if not candidate.is_static]

        def rivals(flat: Candidate) -> list[Candidate]:
            return front([c for c in decaying if _same_bytes(c, flat)])

        static = [c for c in front([c for c in pool if c.is_static]) if rivals(c)]
        if not static:
            self.outcome.no_verdict = "no constant depth and no decay save the same bytes here"
            return ()
        flat = min(static, key=lambda c: abs(c.byte_ratio - chosen.byte_ratio))
        # The front's first ones are foretold to lose least at these bytes; the search half picks.
        count = len(self._search)
        best = min(rivals(flat)[:3], key=lambda c: total(evaluator.losses(c.schedule, count)))
        return flat, best

    def _judge_replies(self, chosen: Candidate) -> Iterator[Progress]:
        """Full depth's perplexity on replies that it, and each schedule of interest, wrote."""
        verdict = self.outcome.verdict
        writers = {
            FULL_DEPTH: DepthSchedule.full(self.model.num_layers),
            "chosen": chosen.schedule,
        }
        if verdict is not None:
            writers["constant depth"] = verdict.static.candidate.schedule
            writers["decaying"] = verdict.decaying.candidate.schedule
        surprises: dict[str, Losses] = {name: [] for name in writers}
        prompts = list(dict.fromkeys(tuple(d.prompt_ids) for d in self._unseen))[:MOST_PROMPTS]
        for number, prompt in enumerate(prompts):
            # All writers answer a prompt, or none.
            if number >= FEWEST_PROMPTS and self._elapsed() > self.settings.max_seconds:
                self.outcome.cut.append(
                    f"replies to {number} of {len(prompts)} prompts were judged"
                )
                break
            judged: dict[DepthSchedule, NDArray[np.float64]] = {}  # two writers may be the same
            for name, schedule in writers.items():
                yield Progress(f"reply {number + 1} of {len(prompts)}: {name}", 0.99)
                if schedule not in judged:
                    reply = write_reply(
                        self.model,
                        prompt,
                        schedule,
                        self.settings.reply_tokens,
                        self.settings.seed + number,
                    )
                    judged[schedule] = surprise(self.model, reply)
                surprises[name].append(judged[schedule])
        own = surprises[FULL_DEPTH]
        self.outcome.judged = {
            name: judge(each, own, self.settings.confidence) for name, each in surprises.items()
        }
        if verdict is not None:
            self.outcome.verdict = replace(
                verdict,
                by_replies=measure_rise(
                    surprises["decaying"], surprises["constant depth"], self.settings.confidence
                ),
            )

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def _same_bytes(one: Candidate, other: Candidate) -> bool:
    return abs(one.byte_ratio / other.byte_ratio - 1) <= SAME_BYTES


def _kinds(model: LoadedModel, units: Literal["layer", "sublayer", "auto"]) -> list[UnitKind]:
    family = model.gate.family
    if not family.can_skip or model.num_layers < 3:
        raise UsageError(
            f"{model.name} runs at full depth only, so there is nothing to calibrate",
            "docs/models.md lists the models that can skip layers",
        )
    if units == "auto":
        return ["layer", "sublayer"] if family.has_sublayers else ["layer"]
    if units == "sublayer" and not family.has_sublayers:
        raise UsageError(
            f"the layers of {model.name} have no sublayers of their own", "use --units layer"
        )
    return [units]
