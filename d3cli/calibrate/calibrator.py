"""Finds the fastest way to run a model within a quality target, and confirms it on unseen text.

One half of the documents is searched (`search`), in each form of the weights that may win
(`forms`); the other half tests what was found (`unseen`, `confirm`). Knows nothing of files,
options or terminals.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

from d3cli.base.errors import CalibrationError, Setting, UsageError
from d3cli.calibrate.alternatives import alternatives
from d3cli.calibrate.budget import (
    Budget,
    check_halves,
    documents_left_out,
    make_budget,
    short_prompts,
)
from d3cli.calibrate.clock import SearchClock
from d3cli.calibrate.confirm import Pair, confirm, constant_and_decaying, safest_first
from d3cli.calibrate.costs import StepCosts, measure_costs
from d3cli.calibrate.forms import ModelForms, with_contenders
from d3cli.calibrate.full_depth import FormsAtFullDepth
from d3cli.calibrate.judge import judge_replies
from d3cli.calibrate.kinds import check_planes, kinds_of
from d3cli.calibrate.mixed_order import count_units
from d3cli.calibrate.nearest import choose_nearest, find_nearest
from d3cli.calibrate.pace import measure_pace
from d3cli.calibrate.result import CalibrationProgress, Measured, Outcome
from d3cli.calibrate.search import Search
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import CandidateKey
from d3cli.calibrate.texts import split
from d3cli.calibrate.unit_order import SearchKind
from d3cli.calibrate.unseen import measure_unseen
from d3cli.kernels.quantization import Quantization
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document

# The share of the time that is kept for free-running replies and rivals where they are asked for.
REPLIES_SHARE = 0.4
MeasureCosts = Callable[[LoadedModel, Document], StepCosts]


class Calibrator:
    """One calibration: iterate it for its progress, then read its `outcome`.

    Constructing it only checks the arguments. `prepare` measures the model's pace and decides what
    the search looks at; iteration begins with it if it has not been called.

    Args:
        model: a model, or the forms of its weights. They are let go and loaded in turn, so nobody
            else should hold one of them.
        began: when the clock of `max_seconds` started, by `time.monotonic`; None for now.
        all_documents: use all documents, however long it takes.
        costs: finds what decode steps cost; by default `measure_costs`.
        reserved: seconds of `max_seconds` that the caller needs afterwards.

    Raises:
        UsageError: the model cannot skip the units asked for, its context is shorter than the
            replies, or there is too little text.
    """

    def __init__(
        self,
        model: LoadedModel | ModelForms,
        documents: Sequence[Document],
        settings: CalibrationSettings,
        began: float | None = None,
        all_documents: bool = False,
        costs: MeasureCosts | None = None,
        reserved: float = 0.0,
    ) -> None:
        self.forms = model if isinstance(model, ModelForms) else ModelForms(model)
        self.settings, self.outcome = settings, Outcome()
        self._began = time.monotonic() if began is None else began
        self._seconds = settings.max_seconds - reserved
        self._all_documents = all_documents
        self._measure_costs = costs or measure_costs
        model = self.forms.model
        if settings.reply_tokens > model.context_length:
            raise UsageError(
                (
                    Setting("reply_tokens"),
                    f" is {settings.reply_tokens:,}, but the model's context holds "
                    f"{model.context_length:,} tokens",
                ),
                "lower it",
            )
        kinds_of(model, settings.units)  # refuses what is impossible
        check_planes(self.forms, settings.units)
        self._search_half, self._unseen_half = split(documents, settings.seed)
        check_halves(self._search_half, self._unseen_half)
        self._plan: Budget | None = None
        self._pace = 0.0
        self._sealed: dict[CandidateKey, Measured] = {}
        self._pairs: dict[Quantization | None, Pair] = {}

    @property
    def model(self) -> LoadedModel:
        """The model that is in memory."""
        return self.forms.model

    @property
    def plan(self) -> Budget:
        """What the search looks at and how long it is expected to take; calls `prepare` once.

        After a search that left time for a more thorough one, this is the latter.
        """
        return self.prepare() if self._plan is None else self._plan

    def prepare(self) -> Budget:
        """Runs a few passes to measure the model's pace, and plans the search by it.

        Raises:
            CalibrationError: even the smallest search would take far longer than `max_seconds`.
        """
        self._pace = measure_pace(self.model, self._search_half)
        self._plan = self._budget(self._pace)
        return self._plan

    def __iter__(self) -> Iterator[CalibrationProgress]:
        if self._plan is None:
            yield CalibrationProgress("measuring the model's pace", 0.0)
        plan, outcome, settings = self.plan, self.outcome, self.settings
        outcome.short_prompts = short_prompts(plan.search)
        at_full = FormsAtFullDepth(self.forms, plan, settings, self._measure_costs)
        yield from at_full
        outcome.against = self.forms.in_words(self.forms.reference)
        outcome.why_not_as_stored = self.forms.why_not_as_stored
        if several := len(self.forms.others) > 0:
            outcome.forms = with_contenders(at_full.forms, settings.target_drop)
            outcome.tried |= {one.full.candidate.key: one.full for one in outcome.forms}
            self._sealed |= at_full.sealed
            # Each form's own plan says later what is left out of the search.
            available = len(self._search_half) + len(self._unseen_half)
            outcome.cut += documents_left_out(plan, available)
            yield from self._search_forms(at_full)
        else:
            search = yield from self._search_only(at_full)
        responses = [len(document.response_ids) for document in self.plan.unseen]
        tried = [one for key, one in outcome.tried.items() if key in self._sealed]
        sequence = safest_first(tried, settings.target_drop, responses)
        confirm(outcome, settings, sequence, self._sealed, self._pairs)
        if outcome.chosen is None and several:
            outcome.nearest = choose_nearest(outcome, settings.target_drop)
        elif outcome.chosen is None:
            outcome.alternatives = alternatives(self.model)
            if outcome.text_fits:
                yield from find_nearest(search, kinds_of(self.model, settings.units))
        elif settings.replies:
            prompts = list(dict.fromkeys(tuple(d.prompt_ids) for d in self.plan.unseen))
            until = self._began + self._seconds
            yield from judge_replies(self.forms, settings, outcome, prompts, until)
        outcome.seconds = self._elapsed()

    def _search_only(
        self, at_full: FormsAtFullDepth
    ) -> Generator[CalibrationProgress, None, Search]:
        """Searches in the only form that there is."""
        search, found = yield from self._search(at_full, self.forms.reference, self.plan)
        if search.ended_early and not found.tried:
            raise CalibrationError(
                f"the time of {self.settings.max_seconds:.0f} seconds ended before any schedule "
                "was tried",
                ("raise ", Setting("max_seconds"), " or lower ", Setting("documents")),
            )
        while (more := self._more_thorough(search)) is not None:
            yield CalibrationProgress("time is left for a more thorough search", 0.0)
            again, better = yield from self._search(at_full, self.forms.reference, more)
            if again.ended_early and not better.tried:
                break
            search, found = again, better
        self._plan = search.plan
        if len(search.plan.unseen) > len(at_full.unseen.documents):
            yield from at_full.read_unseen(search.plan)
        yield from self._seal(at_full, search, found)
        search.outcome = self.outcome
        return search

    def _search_forms(self, at_full: FormsAtFullDepth) -> Iterator[CalibrationProgress]:
        """Searches in every form that may win, the fastest first."""
        wanted = [one.quantization for one in self.outcome.forms if one.searched]
        for number, quantization in enumerate(wanted):
            if not kinds_of(self.forms.take(quantization), self.settings.units):
                self._not_searched(quantization)  # low planes are asked for, and it has none
                continue
            try:
                plan = self._budget_of_form(at_full, quantization, len(wanted) - number)
            except CalibrationError:  # too little time is left
                words = quantization or self.forms.in_words(None)
                self.outcome.cut.append(f"schedules in {words} were not searched")
                self._not_searched(quantization)
                continue
            search, found = yield from self._search(at_full, quantization, plan)
            yield from self._seal(at_full, search, found)
            del search  # it holds the model, which is let go next

    def _not_searched(self, quantization: Quantization | None) -> None:
        self.outcome.forms = [
            replace(one, searched=False) if one.quantization == quantization else one
            for one in self.outcome.forms
        ]

    def _search(
        self, at_full: FormsAtFullDepth, quantization: Quantization | None, plan: Budget
    ) -> Generator[CalibrationProgress, None, tuple[Search, Outcome]]:
        """One search, with an outcome of its own that begins with the orders known."""
        found = Outcome(orders=dict(self.outcome.orders), influence=dict(self.outcome.influence))
        found.cut += plan.left_out
        clock = SearchClock(plan.search_deadline, plan.positions)
        yardstick = at_full.yardstick(quantization)
        search = Search(self.model, self.settings, plan, clock, found, yardstick, at_full.reference)
        yield from search
        search.took = clock.elapsed
        return search, found

    def _seal(
        self, at_full: FormsAtFullDepth, search: Search, found: Outcome
    ) -> Iterator[CalibrationProgress]:
        """Takes over what a search found, and measures on the unseen half what may be tested."""
        outcome, quantization = self.outcome, search.yardstick.quantization
        outcome.tried |= found.tried
        outcome.orders |= found.orders
        outcome.influence |= found.influence
        outcome.cut += [one for one in found.cut if one not in outcome.cut]
        outcome.no_verdict = outcome.no_verdict or found.no_verdict
        search.clock.deadline = float("inf")  # a test that has begun is finished
        responses = [len(document.response_ids) for document in at_full.unseen.documents]
        candidates = safest_first(found.tried.values(), self.settings.target_drop, responses)
        if not candidates:
            return
        pair = constant_and_decaying(search, candidates[-1])
        if pair is not None:
            self._pairs[quantization] = pair
            candidates += [pair.static, pair.decaying]
        distinct = list({candidate.key: candidate for candidate in candidates}.values())
        self._sealed |= yield from measure_unseen(
            self.model, at_full.unseen, distinct, self.settings, search.clock.share
        )

    def _more_thorough(self, search: Search) -> Budget | None:
        """A more thorough search that fits into the time that this one has left.

        A search takes less time than planned if its orders end early, because nothing more can be
        dropped at the target.
        """
        plan = search.plan
        if search.ended_early or not plan.left_out:
            return None
        try:
            more = self._budget(plan.searching / max(search.took, 1e-6))
        except CalibrationError:  # too little time is left
            return None
        fits = more.estimate <= more.seconds and more.is_more_thorough(plan)
        return more if fits else None

    def _budget(self, search_pace: float) -> Budget:
        return make_budget(
            self._search_half,
            self._unseen_half,
            units=self._units(),
            order=self.settings.order,
            pace=self._pace,
            search_pace=search_pace,
            seconds=self._seconds_left(),
            forms=1 + len(self.forms.others),
            all_kinds=self.settings.units != "auto",
            all_documents=self._all_documents,
        )

    def _budget_of_form(
        self, at_full: FormsAtFullDepth, quantization: Quantization | None, share: int
    ) -> Budget:
        """What to search in one form, in one of `share` parts of the time left."""
        return make_budget(
            self.plan.search,
            self.plan.unseen,
            units=self._units(),
            order=self.settings.order,
            pace=at_full.paces.get(quantization, self._pace),
            seconds=self._seconds_left() / share,
            all_kinds=self.settings.units != "auto",
            all_documents=True,
        )

    def _units(self) -> dict[SearchKind, int]:
        return {
            kind: count_units(self.model, kind)
            for kind in kinds_of(self.model, self.settings.units) or ["layer"]
        }

    def _seconds_left(self) -> float:
        kept = self.settings.replies or self.settings.compare_policies
        return (1 - REPLIES_SHARE * kept) * (self._seconds - self._elapsed())

    def _elapsed(self) -> float:
        return time.monotonic() - self._began
