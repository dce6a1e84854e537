"""Scores schedules on a list of documents: the losses against full depth.

Decides on batches, on what is reused between schedules, and on the memory for it. Knows nothing of
which schedules are worth scoring.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from d3cli.base.amounts import readable_size
from d3cli.base.errors import NotEnoughMemoryError, Setting
from d3cli.calibrate.clock import SearchClock
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.memory import activations, available_memory, kv_bytes_per_position
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document, batch_positions, batch_rows
from d3cli.scoring.head import head_chunk, not_finite
from d3cli.scoring.intervals import Losses
from d3cli.scoring.one_pass import ResponseScores, Scorer, score
from d3cli.scoring.prompt_orders import MeasuredPrompt

# Loss charged, in nats, when D³'s log-probability is -inf or NaN.
WORST = 100.0
# The memory for what is kept between schedules: a share of the free memory, up to a maximum.
KEPT_SHARE, MAX_KEPT = 0.25, 8 << 30
# The cost of a candidate's pass relative to full depth: prompts and first layers are reused.
WITH_REUSE = 0.55
# Memory that a search loses to fragmentation, as measured: its tensors have many sizes.
FRAGMENTS = 128 << 20


class Evaluator:
    """Scores schedules on the first documents of a list, and remembers what it has scored.

    What all schedules share (see `Scorer`) is kept for as many batches as fit into a quarter of the
    free memory, at most 8 GB. The other batches are computed in full each time. Apart from that,
    memory is bounded by one batch: 2,048 positions on a CPU, 16,384 on a GPU, or one document.

    Args:
        stages: the counts of documents that may be asked for, increasing; the last is all of them.
        clock: is checked before every batch.
        kept_bytes: overrides the bound on what is kept.
        reference: log-probabilities of the documents' responses that losses are relative to; None
            for the model's own at full depth.
    """

    def __init__(
        self,
        model: LoadedModel,
        documents: Sequence[Document],
        stages: Sequence[int],
        clock: SearchClock,
        kept_bytes: int | None = None,
        reference: Sequence[NDArray[np.float64]] | None = None,
    ) -> None:
        self._has_reference = reference is not None
        assert list(stages) == sorted(set(stages)) and stages[-1] == len(documents)
        self.model, self.documents, self.stages, self.clock = model, documents, stages, clock
        self._remember: tuple[DepthSchedule, tuple[int, ...]] = (
            DepthSchedule.full(model.num_layers),
            (),
        )
        if kept_bytes is None:
            kept_bytes = min(MAX_KEPT, int(KEPT_SHARE * available_memory(model.device)))
        self._left = kept_bytes
        self._batches: dict[int, list[_Batch]] = {}
        begin = 0
        for stage in stages:
            self._batches[stage] = [
                _Batch(model, documents, rows, reference)
                for rows in batch_rows(model, documents, range(begin, stage))
            ]
            begin = stage
        # Where each prompt decides the order, documents are scored one by one.
        self._single = [_Batch(model, documents, [row], reference) for row in range(len(documents))]

    def remember(self, schedule: DepthSchedule, layers: Iterable[int]) -> None:
        """Makes schedules that agree with this one in its first layers cheap: `Scorer.remember`.

        Each batch does so when it is next scored, for as many of the layers as memory allows.
        """
        self._remember = (schedule, tuple(layers))

    def share_first_layers(self, schedules: Iterable[Schedule]) -> None:
        """Runs the first layers, which none of these schedules drops, once for all of them."""
        core_first = min(schedule.core_first for schedule in schedules)
        full = DepthSchedule.full(self.model.num_layers)
        self.remember(full, [core_first - 1] if core_first else [])

    def ordered(self, schedule: Schedule) -> list[DepthSchedule]:
        """The schedule of each document; that in its prompt's own order where it has one.

        Raises:
            OutOfTime: the clock has run out.
            GenerationError: the influence of a unit is not finite.
        """
        if not isinstance(schedule, PromptSchedule):
            return [schedule] * len(self.documents)
        found = []
        for batch in self._single:
            self.clock.check()
            found.append(batch.ordered(schedule))
        return found

    def full_losses(self, count: int) -> Losses:
        """As `losses` of full depth, which are zero unless they are relative to another model's."""
        if self._has_reference:
            return self.losses(DepthSchedule.full(self.model.num_layers), count)
        return [np.zeros(len(d.response_ids)) for d in self.documents[:count]]

    def losses(self, schedule: Schedule, count: int) -> Losses:
        """The losses of the first `count` documents; `count` must be one of the stages.

        Raises:
            OutOfTime: the clock has run out.
            ScheduleError: the schedule does not fit the model.
            GenerationError: a log-probability at full depth is not finite.
        """
        found: dict[int, NDArray[np.float64]] = {}
        if isinstance(schedule, PromptSchedule):
            for batch in self._single[:count]:
                found |= self._batch_losses(batch, schedule)
        else:
            for stage in self.stages[: self.stages.index(count) + 1]:
                for batch in self._batches[stage]:
                    found |= self._batch_losses(batch, schedule)
        return [found[row] for row in range(count)]

    def _batch_losses(self, batch: "_Batch", asked: Schedule) -> dict[int, NDArray[np.float64]]:
        if isinstance(asked, PromptSchedule):
            self.clock.check()
        schedule = batch.ordered(asked)
        effect = batch.effect(schedule)
        if effect not in batch.known:
            self.clock.check()
            self._left -= batch.prepare(*self._remember, room=self._left)
            batch.known[effect] = batch.losses(schedule)
            self.clock.scored += batch.positions * batch.share_run(schedule)
        return batch.known[effect]


def check_finite(full: Iterable[NDArray[np.float64]]) -> None:
    """Raises GenerationError if a log-probability at full depth is not finite."""
    if not all(np.isfinite(log_probs).all() for log_probs in full):
        raise not_finite()


def finite_losses(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses with a number for each token.

    Dropping units may overflow a narrow dtype. That counts as a loss, not as an error.
    """
    finite: NDArray[np.float64] = np.nan_to_num(losses, nan=WORST, posinf=WORST)
    return finite


def check_memory_to_score(model: LoadedModel, documents: Sequence[Document]) -> None:
    """Refuses documents whose largest batch does not fit beside what an `Evaluator` keeps.

    Raises:
        NotEnoughMemoryError: with the memory needed and the memory free.
    """
    need = int((scoring_memory(model, documents) + FRAGMENTS) / (1 - KEPT_SHARE))
    available = available_memory(model.device)
    if need > available:
        raise NotEnoughMemoryError(
            f"a search with {model.name} needs about {readable_size(need)} more, and "
            f"{readable_size(available)} are free",
            (
                "use shorter documents or a smaller model; ",
                Setting("force"),
                " tries it nevertheless",
            ),
        )


def scoring_memory(model: LoadedModel, documents: Sequence[Document]) -> int:
    """The temporary memory for scoring a batch of these documents, in bytes; an estimate."""
    config, dtype = model.causal_lm.config, model.causal_lm.dtype
    longest = max(len(document) for document in documents)
    tokens = max(batch_positions(model), longest)
    # The logits in the model's dtype and in float32, and the temporary of their log-sum-exp.
    logits = min(tokens, head_chunk(model)) * int(config.vocab_size) * (dtype.itemsize + 4 + 4)
    kv_cache = tokens * kv_bytes_per_position(config, dtype)
    return int(kv_cache + activations(config, dtype, tokens, longest) + logits)


class _Batch:
    """Documents that are scored together, by their index in the list."""

    def __init__(
        self,
        model: LoadedModel,
        documents: Sequence[Document],
        rows: Sequence[int],
        reference: Sequence[NDArray[np.float64]] | None,
    ) -> None:
        self.model, self.rows = model, rows
        self.documents = [documents[row] for row in rows]
        self.prompt = max(len(document.prompt_ids) for document in self.documents)
        self.response = max(len(document.response_ids) for document in self.documents)
        self.positions = len(rows) * (self.prompt + self.response - 1)
        self.known: dict[object, dict[int, NDArray[np.float64]]] = {}
        self._prompt = MeasuredPrompt(model, self.documents[0].prompt_ids)
        self._full = None if reference is None else [reference[row] for row in rows]
        self._is_prepared = False
        self._scorer: Scorer | None = None
        self._remembered: tuple[DepthSchedule, tuple[int, ...]] | None = None
        self._kept = self._states = 0  # bytes kept: all, and those of remembered layers

    def ordered(self, schedule: Schedule) -> DepthSchedule:
        """The schedule with its order. A prompt decides it only where it is the only one."""
        if isinstance(schedule, PromptSchedule):
            assert len(self.documents) == 1
            return self._prompt.ordered(schedule)
        return schedule

    def effect(self, schedule: DepthSchedule) -> object:
        """A key; schedules that have it in common drop the same units at the same steps here."""
        lengths = schedule.prefix_lengths(0, self.response)
        return frozenset(
            (unit, length) for unit, length in lengths.items() if length < self.response - 1
        )

    def share_run(self, schedule: DepthSchedule) -> float:
        """About the share of layers that one pass over the batch runs."""
        if self._scorer is not None:
            return WITH_REUSE
        return schedule.mean_depth(self.response) / self.model.num_layers

    def prepare(self, schedule: DepthSchedule, layers: tuple[int, ...], room: int) -> int:
        """Reads the prompts and computes full depth's scores once, and remembers a schedule.

        Returns:
            The increase of the bytes kept, at most `room`.
        """
        before = self._kept
        if not self._is_prepared:
            self._is_prepared = True
            needed = self.positions * kv_bytes_per_position(
                self.model.causal_lm.config, self.model.causal_lm.dtype
            )
            if needed <= room:
                self._scorer = Scorer(self.model, self.documents)
                self._kept = needed
        if self._full is None:
            scores = self._score(DepthSchedule.full(self.model.num_layers))
            self._full = [s.log_probs.numpy() for s in scores]
            check_finite(self._full)
        if self._scorer is not None and self._remembered != (schedule, layers):
            self._remembered = (schedule, layers)
            one = len(self.rows) * self.response * self.model.causal_lm.config.hidden_size
            one *= self.model.causal_lm.dtype.itemsize
            kept = _thin(layers, (room + before - self._kept + self._states) // one)
            if kept:  # else what was remembered before stays
                self._scorer.remember(schedule, kept)
                self._kept += one * len(kept) - self._states
                self._states = one * len(kept)
        return self._kept - before

    def losses(self, schedule: DepthSchedule) -> dict[int, NDArray[np.float64]]:
        assert self._full is not None
        scores = self._score(schedule)
        return {
            row: finite_losses(full - score.log_probs.numpy())
            for row, full, score in zip(self.rows, self._full, scores, strict=True)
        }

    def _score(self, schedule: DepthSchedule) -> list[ResponseScores]:
        if self._scorer is not None:
            return self._scorer.score(schedule)
        return score(self.model, self.documents, schedule)


def _thin(layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """At most `count` of the layers, evenly spread."""
    if count >= len(layers):
        return layers
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(max(0, count)))
