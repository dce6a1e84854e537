"""Rival policies beside D³, at equal bytes: on unseen text, and by the replies that each writes.

Runs after a calibration, in the form of the weights that it chose, and compares with full depth in
that form. So it tells what the choice of layers costs, and nothing else. Knows nothing of
terminals.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.evaluator import finite_losses
from d3cli.calibrate.forms import ModelForms
from d3cli.calibrate.influence import order_by_influence
from d3cli.calibrate.judge import FULL_DEPTH, MAX_PROMPTS, judge, surprises_of, write_in_turn
from d3cli.calibrate.mixed_order import in_legal_order, units_of_mix
from d3cli.calibrate.order import units_of
from d3cli.calibrate.result import CalibrationProgress, Judged, Outcome
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import Candidate
from d3cli.calibrate.unit_order import SearchKind
from d3cli.depth.policies import Policy, at_byte_ratio, byte_ratio_of
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import schedule_of
from d3cli.depth.units import WeightBytes
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Drop, Losses, measure_drop
from d3cli.scoring.snapshot import Compared, compare_with, take_snapshots

# Byte ratios at which policies are compared, beside that of the chosen schedule.
RATIOS = (1.1, 1.25, 1.5, 2.0)
# A policy whose nearest byte ratio is off by more than this share is left out there.
NEAR = 0.05
# Documents that are compared together; so many are compared even if the time is over.
PART = 16


@dataclass(frozen=True, slots=True)
class PolicyAtRatio:
    """One policy at about one byte ratio.

    Attributes:
        asked: the byte ratio that was aimed at.
        schedule: the policy's schedule that comes nearest to it.
        byte_ratio, layer_ratio: on the responses that were scored.
        drop: against full depth in the same form of the weights.
        kl: mean nats per response token.
        same_top: share of response tokens for which full depth has the same top choice.
        against_d3: this policy's perplexity over that of D³ at the same ratio, less 1; None for D³,
            and where D³ has no schedule at this ratio.
        judged: full depth's verdict on the replies that it wrote; None if it wrote none.
        reply_byte_ratio: of these replies.
    """

    policy: Policy
    asked: float
    schedule: Schedule
    byte_ratio: float
    layer_ratio: float
    drop: Drop
    kl: float
    same_top: float
    against_d3: Drop | None
    judged: Judged | None = None
    reply_byte_ratio: float | None = None


@dataclass(slots=True)
class ComparedPolicies:
    """What a comparison found.

    Attributes:
        form: of the weights, in words.
        chosen_ratio: the byte ratio of the chosen schedule on these responses; None without one.
        documents, tokens: what was scored.
        rows: by byte ratio, and by policy.
        full_depth: full depth's verdict on its own replies; None if no replies were written.
        left_out: what could not be compared, and what was left out for lack of time.
    """

    form: str = ""
    chosen_ratio: float | None = None
    documents: int = 0
    tokens: int = 0
    rows: Sequence[PolicyAtRatio] = ()
    full_depth: Judged | None = None
    left_out: Sequence[str] = ()


class PolicyComparison:
    """Iterate it for its progress; then read `found`.

    Replies are written at one ratio: that of the chosen schedule if there is one, else the first
    of `RATIOS`.

    Args:
        documents: text that the search did not see.
        deadline: by `time.monotonic`; a few documents and replies are compared even after it.
    """

    def __init__(
        self,
        forms: ModelForms,
        settings: CalibrationSettings,
        outcome: Outcome,
        documents: Sequence[Document],
        deadline: float,
    ) -> None:
        self._forms, self._settings, self._outcome = forms, settings, outcome
        self._documents, self._deadline = documents, deadline
        self._left_out: list[str] = []
        self.found = ComparedPolicies()

    def __iter__(self) -> Iterator[CalibrationProgress]:
        candidate, forms = _base(self._outcome), self._forms
        quantization = forms.reference if candidate is None else candidate.quantization
        model = forms.take(quantization)
        asked = self._schedules(model, candidate)
        if not asked:
            self.found.left_out = self._left_out
            return
        compared = yield from self._score(model, list(dict.fromkeys(asked.values())))
        lengths = [len(document.response_ids) for document in self._documents[: len(compared)]]
        rows = list(self._rows(model, asked, compared, lengths))
        self.found = ComparedPolicies(
            form=forms.in_words(quantization),
            documents=len(lengths),
            tokens=sum(lengths),
            rows=rows,
            left_out=self._left_out,
        )
        if self._outcome.chosen is not None and candidate is not None:
            own = (row for row in rows if row.schedule == candidate.schedule)
            self.found.chosen_ratio = next((row.byte_ratio for row in own), None)
        yield from self._write(model, min(self._settings.reply_tokens, max(lengths)))

    def _schedules(
        self, model: LoadedModel, candidate: Candidate | None
    ) -> dict[tuple[float, Policy], Schedule]:
        """What to compare: the schedule of each policy at each byte ratio."""
        weights, order = model.weight_bytes, order_of(model, self._outcome, candidate)
        lengths = [len(document.response_ids) for document in self._documents]
        ratios, chosen = list(RATIOS), None
        if self._outcome.chosen is not None and candidate is not None:
            chosen = candidate.schedule
            ratios.insert(0, byte_ratio_of(chosen, weights, lengths))
        found: dict[tuple[float, Policy], Schedule] = {}
        for number, ratio in enumerate(ratios):
            for policy in Policy:
                schedule = at_byte_ratio(policy, order, weights, lengths, ratio)
                if chosen is not None and number == 0 and policy is Policy.D3:
                    schedule = chosen
                near = None if schedule is None else byte_ratio_of(schedule, weights, lengths)
                if schedule is None or near is None or abs(near / ratio - 1) > NEAR:
                    self._left_out.append(f"{policy.in_words} at {ratio:.2f}×: it has none near it")
                    continue
                found[ratio, policy] = schedule
        return found

    def _score(
        self, model: LoadedModel, schedules: Sequence[Schedule]
    ) -> Generator[CalibrationProgress, None, list[dict[Schedule, Compared]]]:
        """Each document under each schedule, part by part while there is time."""
        found: list[dict[Schedule, Compared]] = []
        while len(found) < len(self._documents):
            part = self._documents[len(found) : len(found) + PART]
            if found and time.monotonic() > self._deadline:
                self._left_out.append(
                    f"{len(self._documents) - len(found)} of {len(self._documents)} documents"
                )
                break
            snapshots = {
                row: one for batch in take_snapshots(model, part) for row, one in batch.items()
            }
            kept = [snapshots[row] for row in range(len(part))]
            rows = {
                row: dict(zip(schedules, each, strict=True))
                for batch in compare_with(model, part, kept, schedules)
                for row, each in batch.items()
            }
            found += [rows[row] for row in range(len(part))]
            doing = f"policies: {len(found)} of {len(self._documents)} documents"
            yield CalibrationProgress(doing, 0.99)
        return found

    def _rows(
        self,
        model: LoadedModel,
        asked: Mapping[tuple[float, Policy], Schedule],
        compared: Sequence[Mapping[Schedule, Compared]],
        lengths: Sequence[int],
    ) -> Iterator[PolicyAtRatio]:
        confidence, tokens = self._settings.confidence, sum(lengths)
        for (ratio, policy), schedule in asked.items():
            each = [one[schedule] for one in compared]
            losses = [finite_losses(one.losses) for one in each]
            against = None
            if policy is not Policy.D3 and (ratio, Policy.D3) in asked:
                d3 = [finite_losses(one[asked[ratio, Policy.D3]].losses) for one in compared]
                against = measure_drop(_difference(losses, d3), confidence)
            byte_ratio, layer_ratio = _ratios(each, model.weight_bytes, lengths)
            yield PolicyAtRatio(
                policy,
                ratio,
                schedule,
                byte_ratio,
                layer_ratio,
                measure_drop(losses, confidence),
                kl=sum(float(one.kl.sum()) for one in each) / tokens,
                same_top=sum(int(one.same_top.sum()) for one in each) / tokens,
                against_d3=against,
            )

    def _write(self, model: LoadedModel, max_tokens: int) -> Iterator[CalibrationProgress]:
        """Lets the policies at the first ratio write replies, and full depth judge them."""
        rows, settings = list(self.found.rows), replace(self._settings, reply_tokens=max_tokens)
        first = [row for row in rows if row.asked == rows[0].asked]
        writers = {row.policy.value: row.schedule for row in first}
        prompts = list(dict.fromkeys(tuple(one.prompt_ids) for one in self._documents))
        prompts = prompts[:MAX_PROMPTS]
        written = yield from write_in_turn(model, writers, prompts, settings, self._deadline)
        if len(written) < len(prompts):
            self._left_out.append(f"replies to {len(prompts) - len(written)} of {len(prompts)}")
        surprises = yield from surprises_of(model, prompts, written, settings)
        own = surprises[FULL_DEPTH]
        self.found.full_depth = judge(own, own, settings.confidence)
        for number, row in enumerate(first):
            lengths = [len(replies[row.policy.value].response_ids) for replies in written]
            rows[number] = replace(
                row,
                judged=judge(surprises[row.policy.value], own, settings.confidence),
                reply_byte_ratio=byte_ratio_of(row.schedule, model.weight_bytes, lengths),
            )
        self.found.rows = rows


def _base(outcome: Outcome) -> Candidate | None:
    """The candidate whose form and units are compared; None if nothing that drops units is near."""
    if outcome.chosen is not None:
        return outcome.chosen.candidate
    return None if outcome.nearest is None else outcome.nearest.tried.candidate


def order_of(model: LoadedModel, outcome: Outcome, candidate: Candidate | None) -> Schedule:
    """The order whose units D³ and the constant depth drop: as it was found, then by influence.

    A search ends an order where it costs too much. Higher byte ratios need more of it.

    Args:
        candidate: whose order it is; None, or one at full depth, for the first order found.

    Returns:
        A schedule over it, whose alpha and start mean nothing.
    """
    schedule = None if candidate is None or not candidate.schedule.units else candidate.schedule
    if isinstance(schedule, PromptSchedule):
        return replace(schedule, max_dropped=len(schedule.units))
    known = () if schedule is None else schedule.skip_order
    longer = [one for one in outcome.orders.values() if one[: len(known)] == known and one]
    found: SearchKind = "layer"
    kind = next((kind for kind, one in outcome.orders.items() if one in longer), found)
    units = units_of_mix(model) if kind == "mixed" else units_of(model, kind)
    influence = {unit: outcome.influence[unit] for unit in units if unit in outcome.influence}
    begun = longer[0] if longer else known
    rest = [unit for unit in order_by_influence(model, influence) if unit not in begun]
    return schedule_of(model.weight_bytes, in_legal_order([*begun, *rest]), 0.5, 0)


def _difference(ours: Losses, theirs: Losses) -> list[NDArray[np.float64]]:
    return [one - other for one, other in zip(ours, theirs, strict=True)]


def _ratios(
    compared: Sequence[Compared], weights: WeightBytes, lengths: Sequence[int]
) -> tuple[float, float]:
    """The byte ratio and the layer ratio, each response under the schedule that it ran."""
    pairs = [(one.schedule, length) for one, length in zip(compared, lengths, strict=True)]
    steps = sum(length - 1 for _, length in pairs)
    nbytes = sum((n - 1) / byte_ratio_of(one, weights, [n]) for one, n in pairs)
    layers = sum((n - 1) / one.layer_ratio(n) for one, n in pairs)
    return (steps / nbytes, steps / layers) if steps else (1.0, 1.0)
