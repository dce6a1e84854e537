"""Every form of the weights at full depth, on both halves: what it loses, and how fast it is.

The first form is what all others are compared with. Knows nothing of schedules.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.budget import Budget
from d3cli.calibrate.costs import StepCosts, Yardstick
from d3cli.calibrate.evaluator import check_finite, finite_losses
from d3cli.calibrate.forms import ModelForms
from d3cli.calibrate.race import Tried
from d3cli.calibrate.result import CalibrationProgress, FormTried, Measured
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import CandidateKey, full_depth
from d3cli.calibrate.unseen import UnseenHalf, measured
from d3cli.kernels.quantization import Quantization
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Drop, measure_drop
from d3cli.scoring.snapshot import Compared, Snapshot, compare_with, take_snapshots


class FormsAtFullDepth:
    """Iterate it to load each form and measure it; the last one stays loaded.

    Attributes:
        forms: what was found, in the order of loading; the first one loses nothing.
        costs: of each form's decode steps.
        paces: positions per second that each form scores.
        reference: the first form's log-probabilities on the search half.
        unseen: the first form on the unseen half.
        sealed: the others' figures there.
    """

    def __init__(
        self,
        forms: ModelForms,
        plan: Budget,
        settings: CalibrationSettings,
        measure_costs: Callable[[LoadedModel, Document], StepCosts],
    ) -> None:
        self._models, self._plan, self._settings = forms, plan, settings
        self._measure_costs = measure_costs
        self.forms: list[FormTried] = []
        self.costs: dict[Quantization | None, StepCosts] = {}
        self.paces: dict[Quantization | None, float] = {}
        self.reference: list[NDArray[np.float64]] | None = None
        self.unseen: UnseenHalf
        self.sealed: dict[CandidateKey, Measured] = {}

    def __iter__(self) -> Iterator[CalibrationProgress]:
        first, plan = self._models.reference, self._plan
        model = self._models.take(first)
        yield CalibrationProgress("decode steps", 0.0)
        self.costs[first] = self._measure_costs(model, _longest(plan))
        yield from self.read_unseen(plan)
        if not self._models.others:
            return
        searched = yield from self._read(model, plan.search)
        self.reference = [one.log_probs.numpy() for one in searched]
        candidate = full_depth(self.yardstick(first), model.num_layers)
        full = Tried(candidate, len(plan.search), Drop(0.0, 0.0, 0.0))
        self._add(first, full)
        del model  # so that it can be let go
        for quantization in self._models.others:
            yield from self._measure(quantization, [*searched, *self.unseen.snapshots])

    def read_unseen(self, plan: Budget) -> Iterator[CalibrationProgress]:
        """Reads the unseen half of a plan; the first form must be loaded."""
        first = self._models.reference
        snapshots = yield from self._read(self._models.take(first), plan.unseen)
        self.unseen = UnseenHalf(plan.unseen, snapshots, self.costs[first])

    def yardstick(self, quantization: Quantization | None) -> Yardstick:
        """What schedules in a form save, compared with the first form's full depth."""
        reference, tokens = self.costs[self._models.reference], self._settings.reply_tokens
        return Yardstick(reference, self.costs[quantization], tokens, quantization)

    def _read(
        self, model: LoadedModel, documents: Sequence[Document]
    ) -> Generator[CalibrationProgress, None, list[Snapshot]]:
        found: dict[int, Snapshot] = {}
        for batch in take_snapshots(model, documents):
            found |= batch
            yield CalibrationProgress(
                f"full depth: {len(found)} of {len(documents)} documents", 0.0
            )
        check_finite(one.log_probs.numpy() for one in found.values())
        return [found[row] for row in range(len(documents))]

    def _measure(
        self, quantization: Quantization, snapshots: list[Snapshot]
    ) -> Generator[CalibrationProgress, None, None]:
        """One form on both halves."""
        plan = self._plan
        yield CalibrationProgress(f"{quantization}: loading", 0.0)
        model = self._models.take(quantization)
        self.costs[quantization] = self._measure_costs(model, _longest(plan))
        candidate = full_depth(self.yardstick(quantization), model.num_layers)
        documents = [*plan.search, *plan.unseen]
        each: dict[int, Compared] = {}
        begun = time.monotonic()
        for batch in compare_with(model, documents, snapshots, [candidate.schedule]):
            each |= {row: one for row, [one] in batch.items()}
            doing = f"{quantization}: {len(each)} of {len(documents)} documents"
            yield CalibrationProgress(doing, 0.0)
        positions = sum(map(len, documents))
        self.paces[quantization] = positions / max(time.monotonic() - begun, 1e-6)
        compared, searched = [each[row] for row in range(len(documents))], len(plan.search)
        losses = [finite_losses(one.losses) for one in compared[:searched]]
        drop = measure_drop(losses, self._settings.confidence)
        self._add(quantization, Tried(candidate, searched, drop))
        self.sealed[candidate.key] = measured(
            model, self.unseen, candidate, compared[searched:], self._settings
        )

    def _add(self, quantization: Quantization | None, full: Tried) -> None:
        seconds = self.costs[quantization].seconds
        words = self._models.in_words(quantization)
        reach = self.yardstick(quantization).without_low_planes
        self.forms.append(FormTried(quantization, words, seconds, full, reach))


def _longest(plan: Budget) -> Document:
    """The document whose end decode steps are timed at."""
    return max(plan.search, key=len)
