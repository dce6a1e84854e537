"""What schedules cost in quality on a list of documents: losses against full depth, and the time.

Batches, reuse and the memory they may take are decided here; which schedules to look at is not.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from d3cli.base.errors import GenerationError, NotEnoughMemoryError
from d3cli.calibrate.clock import SearchClock
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.memory import activations, available_memory, gigabytes, kv_bytes_per_position
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document, _batch_positions, batch_rows
from d3cli.scoring.intervals import Losses
from d3cli.scoring.one_pass import ResponseScores, Scorer, head_chunk, score

# Nats lost by a token to which D³ gives no probability, or none that is a number.
WORST = 100.0
# What may be kept between schedules: a share of what is free, and never more than this.
KEPT_SHARE, MOST_KEPT = 0.25, 8 << 30
# A candidate's pass, beside full depth over all positions: prompts and first layers are reused.
WITH_REUSE = 0.55
# What a search leaves unused between what is in use, as measured: its tensors have all sizes.
FRAGMENTS = 128 << 20


class Evaluator:
    """Scores schedules on the first documents of a list, and remembers what it has scored.

    What all schedules share (see `Scorer`) is kept for as many batches as a quarter of the free
    memory holds, 8 GB at most; the other batches are scored anew each time. Beyond that, memory is
    bounded by one batch: 2,048 positions on a CPU, 16,384 on a GPU, or one document.

    Args:
        stages: how many documents may be asked for, increasing; the last is all of them.
        clock: is asked before every batch.
        kept_bytes: overrides the bound on what is kept.
    """

    def __init__(
        self,
        model: LoadedModel,
        documents: Sequence[Document],
        stages: Sequence[int],
        clock: SearchClock,
        kept_bytes: int | None = None,
    ) -> None:
        assert list(stages) == sorted(set(stages)) and stages[-1] == len(documents)
        self.model, self.documents, self.stages, self.clock = model, documents, stages, clock
        self._remember: tuple[DepthSchedule, tuple[int, ...]] = (
            DepthSchedule.full(model.num_layers),
            (),
        )
        if kept_bytes is None:
            kept_bytes = min(MOST_KEPT, int(KEPT_SHARE * available_memory(model.device)))
        self._left = kept_bytes
        self._batches: dict[int, list[_Batch]] = {}
        begin = 0
        for stage in stages:
            self._batches[stage] = [
                _Batch(model, documents, rows)
                for rows in batch_rows(model, documents, range(begin, stage))
            ]
            begin = stage

    def remember(self, schedule: DepthSchedule, layers: Iterable[int]) -> None:
        """Makes what agrees with this schedule in its first layers cheap; see `Scorer.remember`.

        Done for a batch when it is next scored, and for as many of the layers as there is room.
        """
        self._remember = (schedule, tuple(layers))

    def share_first_layers(self, schedules: Iterable[DepthSchedule]) -> None:
        """Runs the first layers, which none of these schedules drops, once for all of them."""
        core_first = min(schedule.core_first for schedule in schedules)
        full = DepthSchedule.full(self.model.num_layers)
        self.remember(full, [core_first - 1] if core_first else [])

    def losses(self, schedule: DepthSchedule, count: int) -> Losses:
        """The losses of the first `count` documents, which must be one of the stages.

        Raises:
            OutOfTime: the clock has run out.
            ScheduleError: the schedule does not fit the model.
        """
        found: dict[int, NDArray[np.float64]] = {}
        for stage in self.stages[: self.stages.index(count) + 1]:
            for batch in self._batches[stage]:
                found |= self._batch_losses(batch, schedule)
        return [found[row] for row in range(count)]

    def _batch_losses(
        self, batch: "_Batch", schedule: DepthSchedule
    ) -> dict[int, NDArray[np.float64]]:
        effect = batch.effect(schedule)
        if effect not in batch.known:
            self.clock.check()
            self._left -= batch.prepare(*self._remember, room=self._left)
            batch.known[effect] = batch.losses(schedule)
            self.clock.scored += batch.positions * batch.share_run(schedule)
        return batch.known[effect]


def check_memory_to_score(model: LoadedModel, documents: Sequence[Document]) -> None:
    """Refuses documents whose largest batch will not fit beside what an `Evaluator` keeps.

    Raises:
        NotEnoughMemoryError: with both numbers.
    """
    need = int((scoring_memory(model, documents) + FRAGMENTS) / (1 - KEPT_SHARE))
    available = available_memory(model.device)
    if need > available:
        raise NotEnoughMemoryError(
            f"a search with {model.name} needs about {gigabytes(need)} more, and "
            f"{gigabytes(available)} are free",
            "shorter documents, or a smaller model; --force tries all the same",
        )


def scoring_memory(model: LoadedModel, documents: Sequence[Document]) -> int:
    """Bytes that scoring a batch of these documents takes for a moment, about."""
    config, dtype = model.causal_lm.config, model.causal_lm.dtype
    longest = max(len(document) for document in documents)
    tokens = max(_batch_positions(model), longest)
    # The logits in the model's dtype, in float32, and what their logarithm's sum takes.
    logits = min(tokens, head_chunk(model)) * int(config.vocab_size) * (dtype.itemsize + 4 + 4)
    kv_cache = tokens * kv_bytes_per_position(config, dtype)
    return int(kv_cache + activations(config, dtype, tokens, longest) + logits)


class _Batch:
    """Documents scored together, by their numbers in the list."""

    def __init__(
        self, model: LoadedModel, documents: Sequence[Document], rows: Sequence[int]
    ) -> None:
        self.model, self.rows = model, rows
        self.documents = [documents[row] for row in rows]
        self.prompt = max(len(document.prompt_ids) for document in self.documents)
        self.response = max(len(document.response_ids) for document in self.documents)
        self.positions = len(rows) * (self.prompt + self.response - 1)
        self.known: dict[object, dict[int, NDArray[np.float64]]] = {}
        self._full: list[NDArray[np.float64]] | None = None
        self._scorer: Scorer | None = None
        self._remembered: tuple[DepthSchedule, tuple[int, ...]] | None = None
        self._kept = self._states = 0  # bytes: all, and those of what is remembered

    def effect(self, schedule: DepthSchedule) -> object:
        """Equal for schedules that drop the same units at the same steps of these responses."""
        lengths = schedule.prefix_lengths(0, self.response)
        return frozenset(
            (unit, length) for unit, length in lengths.items() if length < self.response - 1
        )

    def share_run(self, schedule: DepthSchedule) -> float:
        """The share of layers that one pass over the batch runs, about."""
        if self._scorer is not None:
            return WITH_REUSE
        return schedule.mean_depth(self.response) / self.model.num_layers

    def prepare(self, schedule: DepthSchedule, layers: tuple[int, ...], room: int) -> int:
        """Computes full depth's scores once, and remembers a schedule.

        Returns:
            How many bytes more than before it keeps, within `room`.
        """
        before = self._kept
        if self._full is None:
            needed = self.positions * kv_bytes_per_position(
                self.model.causal_lm.config, self.model.causal_lm.dtype
            )
            if needed <= room:
                self._scorer = Scorer(self.model, self.documents)
                self._kept = needed
            scores = self._score(DepthSchedule.full(self.model.num_layers))
            self._full = [s.log_probs.numpy() for s in scores]
            if not all(np.isfinite(log_probs).all() for log_probs in self._full):
                raise GenerationError(
                    "the model's log-probabilities are not finite",
                    "the weights may be damaged, or --dtype too narrow: try --dtype float32",
                )
        if self._scorer is not None and self._remembered != (schedule, layers):
            self._remembered = (schedule, layers)
            self._kept -= self._states
            one = len(self.rows) * self.response * self.model.causal_lm.config.hidden_size
            one *= self.model.causal_lm.dtype.itemsize
            kept = _thin(layers, (room + before - self._kept) // one)
            if kept:
                self._scorer.remember(schedule, kept)
            self._states = one * len(kept)
            self._kept += self._states
        return self._kept - before

    def losses(self, schedule: DepthSchedule) -> dict[int, NDArray[np.float64]]:
        assert self._full is not None
        scores = self._score(schedule)
        return {
            # Dropping units may take a narrow dtype out of its range; that is a loss like others.
            row: np.nan_to_num(full - score.log_probs.numpy(), nan=WORST, posinf=WORST)
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
