"""One-pass teacher-forced scores of a D³ decode.

Active sets are nested and depth never grows, so each unit runs on a prefix of the positions: the
prompt and the tokens before the first one that drops it. One parallel forward with those prefixes
therefore gives the logits of the whole token-by-token decode, for less than the price of one
full-depth prefill. Knows nothing of text or sampling.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d3cli.base.errors import PromptError
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import parse_unit
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document

# Bytes of float32 logits that exist at once: 64 positions of a 256k vocabulary.
HEAD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ResponseScores:
    """Scores of one response of N tokens, each at its own depth.

    Attributes:
        log_probs: ``[N]`` float64, natural log-probability of each token.
        top_ids: ``[N]`` the raw argmax at each step.
    """

    log_probs: Tensor
    top_ids: Tensor


def score(
    model: LoadedModel, documents: Sequence[Document], schedule: DepthSchedule
) -> list[ResponseScores]:
    """Scores a batch of documents under a schedule, in one forward.

    The prompts are left-padded so that all responses begin in one column; one prefix length a unit
    then serves every row. Memory grows with rows times the longest prompt plus response.

    Raises:
        ScheduleError: the schedule is for another number of layers.
        PromptError: a document has an empty prompt or response, or exceeds the model's context.
    """
    if not documents:
        model.check_schedule(schedule)
        return []
    model.check_schedule(schedule)
    _check(model, documents)
    prompt_len = max(len(document.prompt_ids) for document in documents)
    new_tokens = max(len(document.response_ids) for document in documents)
    ids, mask, positions = _pad(documents, prompt_len, new_tokens, model.device)
    lengths = schedule.prefix_lengths(prompt_len, new_tokens)
    hidden = model.hidden_states(ids, attention_mask=mask, position_ids=positions, limits=lengths)
    # Response token t is predicted at position prompt_len + t - 1.
    states = _pack(hidden[:, prompt_len - 1 :], documents)
    return _score_states(model, states, documents)


class Scorer:
    """Scores the same documents under many schedules; what they share is computed once.

    The prompts run at full depth under every schedule: their keys and values are kept, and a
    schedule costs a pass over the response tokens. Less still, where it agrees in the first layers
    with one that is remembered.

    Memory: ``B * (P + N)`` positions of KV cache, for B documents, the longest prompt P and the
    longest response N, and ``B * N * H`` hidden states for each layer remembered.

    Raises:
        PromptError: a document has an empty prompt or response, or exceeds the model's context.
    """

    def __init__(self, model: LoadedModel, documents: Sequence[Document]) -> None:
        _check(model, documents)
        self.model, self.documents = model, list(documents)
        self._prompt_len = prompt_len = max(len(document.prompt_ids) for document in documents)
        self._new_tokens = max(len(document.response_ids) for document in documents)
        self._ids, self._mask, self._positions = _pad(
            documents, prompt_len, self._new_tokens, model.device
        )
        self._cache = model.new_cache()
        self._cache.reserve(self._ids.shape[1])
        prefilled = model.hidden_states(
            self._ids[:, :prompt_len],
            self._cache,
            attention_mask=None if self._mask is None else self._mask[:, :prompt_len],
            position_ids=None if self._positions is None else self._positions[:, :prompt_len],
        )
        self._cache.commit(prompt_len, full_depth=True)
        self._first_hidden = prefilled[:, -1:]  # predicts response token 0, [B, 1, H]
        self._remembered: dict[str, int] = {}
        self._states: dict[int, Tensor] = {}  # layer -> what it gave under the one remembered

    def remember(self, schedule: DepthSchedule, layers: Iterable[int]) -> None:
        """Runs a schedule once and keeps what the given layers give, in place of what was kept.

        A schedule that drops the same units at the same steps in all layers up to one of these
        then starts behind it. Full depth serves all that drop nothing from the first layers.

        Raises:
            ScheduleError: the schedule does not fit the model.
        """
        self.model.check_schedule(schedule)
        self._remembered, self._states = self._limits(schedule), {}
        self._states = self._outputs(self._remembered, layers)

    def _outputs(self, limits: Mapping[str, int], layers: Iterable[int]) -> dict[int, Tensor]:
        """What layers give at the response positions, ``[B, N - 1, H]`` each."""
        if self._new_tokens == 1:
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

    def score(self, schedule: DepthSchedule) -> list[ResponseScores]:
        """As the function `score`, for this scorer's documents.

        Raises:
            ScheduleError: the schedule does not fit the model.
        """
        return _score_states(self.model, self.states(schedule), self.documents)

    def states(self, schedule: DepthSchedule) -> Tensor:
        """Final hidden states that predict the response tokens, ``[T, H]``, document by document.

        Raises:
            ScheduleError: the schedule does not fit the model.
        """
        self.model.check_schedule(schedule)
        hidden = self._first_hidden
        if self._new_tokens > 1:
            limits = self._limits(schedule)
            agree = _layers_that_agree(limits, self._remembered, self.model.num_layers)
            start = max((layer for layer in self._states if layer < agree), default=None)
            states = {} if start is None else {str(start): self._states[start]}
            skipped = {str(layer): 0 for layer in range(start or 0)}
            hidden = torch.cat([hidden, self._respond(limits | skipped, states)], dim=1)
        return _pack(hidden, self.documents)

    def lens(self, layers: Sequence[int]) -> Iterator[Tensor]:
        """Top choices ``[B, N - 1]`` of the logit lens behind each of these layers.

        The lens reads a layer's output, at full depth, as if the layers behind it did not exist:
        through the last norm and the LM head (nostalgebraist 2020, "interpreting GPT: the logit
        lens"). Of the response tokens but the first, which the prompt's pass predicts.
        """
        last = self.model.num_layers - 1
        skipped = {str(layer): 0 for layer in range(last)}
        for states in self._outputs({}, layers).values():
            hidden = self._respond(skipped, {str(last): states})
            tops = [
                self.model.logits(part).argmax(dim=-1)
                for part in torch.split(hidden.flatten(0, 1), head_chunk(self.model))
            ]
            yield torch.cat(tops).reshape(hidden.shape[:2]).cpu()

    def _limits(self, schedule: DepthSchedule) -> dict[str, int]:
        """On how many response positions each unit runs; only those that do not run on all."""
        lengths = schedule.prefix_lengths(self._prompt_len, self._new_tokens)
        positions = self._new_tokens - 1
        limits = {unit: length - self._prompt_len for unit, length in lengths.items()}
        return {unit: limit for unit, limit in limits.items() if limit < positions}

    def _respond(self, limits: Mapping[str, int], states: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of all response positions but the last, ``[B, N - 1, H]``."""
        self._cache.crop(self._prompt_len)
        return self.model.hidden_states(
            self._ids[:, self._prompt_len :],
            self._cache,
            attention_mask=self._mask,
            position_ids=None
            if self._positions is None
            else self._positions[:, self._prompt_len :],
            limits=limits,
            states=states,
        )


def _layers_that_agree(ours: Mapping[str, int], theirs: Mapping[str, int], layers: int) -> int:
    """How many of the first layers run alike under two sets of limits."""
    different = dict(ours.items() ^ theirs.items())
    return min((parse_unit(unit).layer for unit in different), default=layers)


def _check(model: LoadedModel, documents: Sequence[Document]) -> None:
    for document in documents:
        if not document.prompt_ids or not document.response_ids:
            raise PromptError("a document to score has an empty prompt or response")
        if len(document) - 1 > model.context_length:
            raise PromptError(
                f"a document of {len(document):,} tokens does not fit the model's context of "
                f"{model.context_length:,}"
            )


def perplexity(scores: Sequence[ResponseScores]) -> float:
    """Exp of the mean negative log-probability over all response tokens.

    Compare it only with another perplexity of the same tokens.
    """
    return math.exp(-float(torch.cat([score.log_probs for score in scores]).mean()))


def _pad(
    documents: Sequence[Document], prompt_len: int, new_tokens: int, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Ids, attention mask and position ids, each ``[B, prompt_len + new_tokens - 1]``.

    Mask and positions are None where every row is full, so that the fast attention path is taken.
    """
    width = prompt_len + new_tokens - 1
    ids = torch.zeros((len(documents), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    positions = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        begin = prompt_len - len(document.prompt_ids)
        tokens = [*document.prompt_ids, *document.response_ids[:-1]]
        ids[row, begin : begin + len(tokens)] = torch.tensor(tokens)
        mask[row, begin : begin + len(tokens)] = 1
        # Padding on either side repeats a valid position: learned positions end at the context.
        positions[row] = (torch.arange(width) - begin).clamp(0, len(tokens) - 1)
    if bool(mask.all()):
        return ids.to(device), None, None
    return ids.to(device), mask.to(device), positions.to(device)


def head_chunk(model: LoadedModel) -> int:
    """How many positions the LM head may take at once."""
    return max(1, HEAD_BYTES // (4 * int(model.causal_lm.config.vocab_size)))


def _pack(hidden: Tensor, documents: Sequence[Document]) -> Tensor:
    """``[B, >= N, H]``, from the last prompt position on, to ``[T, H]`` without the padding."""
    return torch.cat(
        [hidden[row, : len(document.response_ids)] for row, document in enumerate(documents)]
    )


def _score_states(
    model: LoadedModel, states: Tensor, documents: Sequence[Document]
) -> list[ResponseScores]:
    """Applies the head in chunks to ``states`` ``[T, H]``."""
    lengths = [len(document.response_ids) for document in documents]
    targets = torch.tensor([id_ for document in documents for id_ in document.response_ids])
    log_probs, top_ids = [], []
    for part, wanted in zip(
        torch.split(states, head_chunk(model)),
        torch.split(targets.to(states.device), head_chunk(model)),
        strict=True,
    ):
        logits = model.logits(part)  # [S, V]
        picked = logits.gather(-1, wanted[:, None])[:, 0]
        log_probs.append((picked - logits.logsumexp(dim=-1)).double().cpu())
        top_ids.append(logits.argmax(dim=-1).cpu())
    return [
        ResponseScores(*scores)
        for scores in zip(
            torch.split(torch.cat(log_probs), lengths),
            torch.split(torch.cat(top_ids), lengths),
            strict=True,
        )
    ]
