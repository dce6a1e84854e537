"""Finds the fastest depth schedule within a quality target and confirms it on unseen text.

One half of the documents is searched (`search`); the other half tests what was found (`confirm`).
Knows nothing of files, options or terminals.
"""

import time
from collections.abc import Generator, Iterator, Sequence

from d3cli.base.errors import CalibrationError, Setting, UsageError
from d3cli.calibrate.alternatives import alternatives
from d3cli.calibrate.budget import Budget, check_halves, make_budget, measure_pace, short_prompts
from d3cli.calibrate.clock import SearchClock
from d3cli.calibrate.confirm import confirm
from d3cli.calibrate.judge import judge_replies
from d3cli.calibrate.nearest import find_nearest
from d3cli.calibrate.order import units_of
from d3cli.calibrate.result import CalibrationProgress, CalibrationSettings, Outcome
from d3cli.calibrate.search import Search
from d3cli.calibrate.texts import split
from d3cli.depth.units import UnitChoice, UnitKind
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document

# The share of the time that is kept for free-running replies where they are asked for.
REPLIES_SHARE = 0.4


class Calibrator:
    """One calibration: iterate it for its progress, then read its `outcome`.

    Constructing it only checks the arguments. `prepare` measures the model's pace and decides what
    the search looks at; iteration begins with it if it has not been called.

    Args:
        began: when the clock of `max_seconds` started, by `time.monotonic`; None for now.
        all_documents: use all documents, however long it takes.

    Raises:
        UsageError: the model cannot skip the units asked for, its context is shorter than the
            replies, or there is too little text.
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
        self._all_documents = all_documents
        if settings.reply_tokens > model.context_length:
            raise UsageError(
                (
                    Setting("reply_tokens"),
                    f" is {settings.reply_tokens:,}, but the model's context holds "
                    f"{model.context_length:,} tokens",
                ),
                "lower it",
            )
        self._kinds = _kinds(model, settings.units)
        self._search_half, self._unseen_half = split(documents, settings.seed)
        check_halves(self._search_half, self._unseen_half)
        self._plan: Budget | None = None
        self._pace = 0.0

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
        plan = self.plan
        search, outcome = yield from self._search(plan)
        if search.ended_early and not outcome.tried:
            raise CalibrationError(
                f"the time of {self.settings.max_seconds:.0f} seconds ended before any schedule "
                "was tried",
                ("raise ", Setting("max_seconds"), " or lower ", Setting("documents")),
            )
        while (more := self._more_thorough(search)) is not None:
            yield CalibrationProgress("time is left for a more thorough search", 0.0)
            again, found = yield from self._search(more)
            if again.ended_early and not found.tried:
                break
            search, outcome = again, found
        self._plan, self.outcome = search.plan, outcome
        search.clock.deadline = float("inf")  # a test that has begun is finished
        yield from confirm(search)
        if outcome.chosen is None:
            outcome.alternatives = alternatives(self.model)
            if outcome.text_fits:
                yield from find_nearest(search, self._kinds)
        if self.settings.replies and outcome.chosen is not None:
            yield from judge_replies(search, self._began + self.settings.max_seconds)
        outcome.seconds = self._elapsed()

    def _search(self, plan: Budget) -> Generator[CalibrationProgress, None, tuple[Search, Outcome]]:
        outcome = Outcome(cut=[plan.left_out] if plan.left_out else [])
        outcome.short_prompts = short_prompts(plan.search)
        clock = SearchClock(plan.search_deadline, plan.positions)
        search = Search(self.model, self.settings, plan, clock, outcome)
        yield from search
        search.took = clock.elapsed
        return search, outcome

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
        settings = self.settings
        left = settings.max_seconds - self._elapsed()
        return make_budget(
            self._search_half,
            self._unseen_half,
            units={kind: len(units_of(self.model, kind)) for kind in self._kinds},
            order=settings.order,
            pace=self._pace,
            search_pace=search_pace,
            seconds=left * (1 - REPLIES_SHARE) if settings.replies else left,
            all_kinds=settings.units != "auto",
            all_documents=self._all_documents,
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def _kinds(model: LoadedModel, units: UnitChoice) -> list[UnitKind]:
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
            f"the layers of {model.name} have no separate sublayers",
            ("use ", Setting("units", "layer")),
        )
    if units == "plane" and not model.weight_bytes.is_nested:
        raise UsageError(
            f"the weights of {model.name} are not nested, so they have no low planes",
            ("use ", Setting("quantization", "nested")),
        )
    return [units]
