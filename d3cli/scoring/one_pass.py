"""One-pass teacher-forced scores of a D³ decode.

Active sets are nested and depth never grows, so each unit runs on a prefix of the positions: the
prompt, and the response tokens before the first one that drops it. One parallel forward with these
prefixes therefore computes the logits of the whole token-by-token decode, at less than the cost of
one full-depth prefill. Knows nothing of text or sampling.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import UnitKind, parse_unit
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import (
    Document,
    check_documents,
    pad,
    response_ids,
    split_by_document,
    unpad,
)
from d3cli.scoring.head import log_probs_of, top_choices
from d3cli.scoring.prompt_orders import MeasuredPrompt


@dataclass(frozen=True, slots=True)
class ResponseScores:
    """Scores of one response of N tokens, each at its own depth.

    Attributes:
        log_probs: ``[N]`` float64, natural log-probability of each token.
    """

    log_probs: Tensor


def score(
    model: LoadedModel, documents: Sequence[Document], schedule: Schedule
) -> list[ResponseScores]:
    """Scores a batch of documents under a schedule, in one forward.

    If each prompt decides the order, documents are scored one by one: the prompt at full depth,
    which yields the order, and then the response in one pass. That is as much work as one forward.

    Memory grows with the number of documents times the longest prompt plus the longest response.

    Raises:
        GenerationError: the order of a prompt is asked for, and its states are not finite.
        ScheduleError: the schedule does not fit the model.
        PromptError: a document has an empty prompt or response, or exceeds the model's context.
    """
    model.check_schedule(schedule)
    if not documents:
        return []
    if isinstance(schedule, PromptSchedule):
        scorers = (Scorer(model, [document], schedule.kind) for document in documents)
        return [scorer.score(schedule)[0] for scorer in scorers]
    return _score_states(model, response_states(model, documents, schedule), documents)


def response_states(
    model: LoadedModel, documents: Sequence[Document], schedule: DepthSchedule
) -> Tensor:
    """Final hidden states that predict the response tokens, ``[T, H]``, document by document.

    All documents are read in one forward.

    Raises:
        PromptError: as for `score`.
    """
    check_documents(model, documents)
    batch = pad(documents, model.device)
    hidden = model.hidden_states(
        batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        limits=schedule.prefix_lengths(batch.prompt_len, batch.new_tokens),
    )
    # Response token t is predicted at position prompt_len + t - 1.
    return unpad(hidden[:, batch.prompt_len - 1 :], documents)


def perplexity(scores: Sequence[ResponseScores]) -> float:
    """Exp of the mean negative log-probability over all response tokens.

    Compare it only with the perplexity of the same tokens.
    """
    return math.exp(-float(torch.cat([score.log_probs for score in scores]).mean()))


class Scorer:
    """Scores the same documents under many schedules, and computes once what they share.

    Prompts run at full depth under every schedule, so their keys and values are kept and a schedule
    costs one pass over the response tokens. It costs less if its first layers run as they do under
    a remembered schedule.

    A single document may decide its own order: a `PromptSchedule` is then allowed.

    Args:
        measure: the units whose influence on the prompt of a single document is measured while it
            is read; others take another pass over the prompt.

    Memory: ``B * (P + N)`` positions of KV cache, for B documents, the longest prompt P and the
    longest response N, and ``B * N * H`` hidden states for each layer remembered.

    Raises:
        PromptError: a document has an empty prompt or response, or exceeds the model's context.
    """

    def __init__(
        self,
        model: LoadedModel,
        documents: Sequence[Document],
        measure: UnitKind | None = None,
    ) -> None:
        check_documents(model, documents)
        self.model, self.documents = model, list(documents)
        self._batch = batch = pad(documents, model.device)
        self._cache = model.new_cache()
        self._cache.reserve(batch.ids.shape[1])
        self._prompt = MeasuredPrompt(model, self.documents[0].prompt_ids)
        # Predicts response token 0, [B, 1, H].
        if measure is None:
            self._first_hidden = self._read_prompts()
        else:
            assert len(self.documents) == 1
            self._first_hidden = self._prompt.read(self._cache, measure)
        self._remembered: dict[str, int] = {}
        self._states: dict[int, Tensor] = {}  # layer -> its output under the remembered limits

    def _read_prompts(self) -> Tensor:
        """Prefills the cache with all prompts in one pass; returns their last states."""
        batch = self._batch
        prompt_len = batch.prompt_len
        prefilled = self.model.hidden_states(
            batch.ids[:, :prompt_len],
            self._cache,
            attention_mask=None if batch.mask is None else batch.mask[:, :prompt_len],
            position_ids=None if batch.positions is None else batch.positions[:, :prompt_len],
        )
        self._cache.commit(prompt_len, full_depth=True)
        return prefilled[:, -1:]

    def ordered(self, schedule: Schedule) -> DepthSchedule:
        """The schedule with its order; a `PromptSchedule` gets that of the single document."""
        if isinstance(schedule, PromptSchedule):
            assert len(self.documents) == 1
            return self._prompt.ordered(schedule)
        return schedule

    def remember(self, schedule: DepthSchedule, layers: Iterable[int]) -> None:
        """Runs a schedule once and keeps the outputs of the given layers, replacing earlier ones.

        A schedule that drops the same units at the same steps in all layers up to one of these
        then starts after that layer. Remembering full depth serves every schedule that drops
        nothing from the first layers.

        Raises:
            ScheduleError: the schedule does not fit the model.
        """
        self.model.check_schedule(schedule)
        self._remembered, self._states = self._limits(schedule), {}
        self._states = self._outputs(self._remembered, layers)

    def score(self, schedule: Schedule) -> list[ResponseScores]:
        """As the function `score`, for this scorer's documents.

        Raises:
            ScheduleError: the schedule does not fit the model.
        """
        return _score_states(self.model, self.states(schedule), self.documents)

    def states(self, schedule: Schedule) -> Tensor:
        """Final hidden states that predict the response tokens, ``[T, H]``, document by document.

        Raises:
            ScheduleError: the schedule does not fit the model.
        """
        self.model.check_schedule(schedule)
        schedule = self.ordered(schedule)
        hidden = self._first_hidden
        if self._batch.new_tokens > 1:
            limits = self._limits(schedule)
            same = _layers_alike(limits, self._remembered, self.model.num_layers)
            start = max((layer for layer in self._states if layer < same), default=None)
            states = {} if start is None else {str(start): self._states[start]}
            skipped = {str(layer): 0 for layer in range(start or 0)}
            hidden = torch.cat([hidden, self._respond(limits | skipped, states)], dim=1)
        return unpad(hidden, self.documents)

    def lens(self, layers: Sequence[int]) -> Iterator[Tensor]:
        """Top choices ``[B, N - 1]`` of the logit lens after each of these layers.

        The lens reads a layer's output at full depth as if it were the last layer's: through the
        final norm and the LM head (nostalgebraist 2020, "interpreting GPT: the logit lens"). The
        first response token is left out, since the prompt's pass predicts it.
        """
        last = self.model.num_layers - 1
        skipped = {str(layer): 0 for layer in range(last)}
        for states in self._outputs({}, layers).values():
            hidden = self._respond(skipped, {str(last): states})  # [B, N - 1, H]
            yield top_choices(self.model, hidden.flatten(0, 1)).reshape(hidden.shape[:2])

    def _outputs(self, limits: Mapping[str, int], layers: Iterable[int]) -> dict[int, Tensor]:
        """Outputs of layers at the response positions, ``[B, N - 1, H]`` each."""
        if self._batch.new_tokens == 1:
            return {}
        kept: dict[int, Tensor] = {}

        def keep(layer: int, output: Any) -> None:
            kept[layer] = output if isinstance(output, Tensor) else output[0]

        hooks = [
            self.model.gate.layers[layer].register_forward_hook(
                lambda _module, _inputs, output, layer=layer: keep(layer, output)
            )
            for layer in layers
        ]
        try:
            self._respond(limits, {})
        finally:
            for hook in hooks:
                hook.remove()
        return kept

    def _limits(self, schedule: DepthSchedule) -> dict[str, int]:
        """How many response positions each unit runs on, for units that do not run on all."""
        prompt_len, positions = self._batch.prompt_len, self._batch.new_tokens - 1
        lengths = schedule.prefix_lengths(prompt_len, self._batch.new_tokens)
        limits = {unit: length - prompt_len for unit, length in lengths.items()}
        return {unit: limit for unit, limit in limits.items() if limit < positions}

    def _respond(self, limits: Mapping[str, int], states: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of all response positions but the last, ``[B, N - 1, H]``."""
        batch = self._batch
        self._cache.crop(batch.prompt_len)
        return self.model.hidden_states(
            batch.ids[:, batch.prompt_len :],
            self._cache,
            attention_mask=batch.mask,
            position_ids=None
            if batch.positions is None
            else batch.positions[:, batch.prompt_len :],
            limits=limits,
            states=states,
        )


def _layers_alike(ours: Mapping[str, int], theirs: Mapping[str, int], layers: int) -> int:
    """How many of the first layers run alike under two sets of limits."""
    different = dict(ours.items() ^ theirs.items())
    return min((parse_unit(unit).layer for unit in different), default=layers)


def _score_states(
    model: LoadedModel, states: Tensor, documents: Sequence[Document]
) -> list[ResponseScores]:
    """Scores of the response tokens, from the ``states`` ``[T, H]`` that predict them."""
    log_probs = log_probs_of(model, states, response_ids(documents))
    return [ResponseScores(part) for part in split_by_document(log_probs, documents)]
