"""One-pass teacher-forced scores of a D³ decode.

Active sets are nested and depth never grows, so each unit runs on a prefix of the positions: the
prompt and the tokens before the first one that drops it. One parallel forward with those prefixes
therefore gives the logits of the whole token-by-token decode, for less than the price of one
full-depth prefill. Knows nothing of text or sampling.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d3cli.errors import PromptError, ScheduleError
from d3cli.model import LoadedModel
from d3cli.schedule import DepthSchedule
from d3cli.units import parse_unit

# Bytes of float32 logits that exist at once: 64 positions of a 256k vocabulary.
HEAD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt and the response whose tokens are scored, as token ids."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


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
    return _score_rows(model, response_states(model, documents, schedule), documents)


def response_states(
    model: LoadedModel, documents: Sequence[Document], schedule: DepthSchedule
) -> Tensor:
    """The final hidden states that predict the responses, ``[B, N, H]``; row b's end is padding.

    Raises:
        ScheduleError, PromptError: as for `score`.
    """
    model.check_schedule(schedule)
    _check(model, documents)
    prompt_len = max(len(document.prompt_ids) for document in documents)
    new_tokens = max(len(document.response_ids) for document in documents)
    ids, mask, positions = _pad(documents, prompt_len, new_tokens, model.device)
    lengths = schedule.prefix_lengths(prompt_len, new_tokens)
    hidden = model.hidden_states(ids, attention_mask=mask, position_ids=positions, limits=lengths)
    return hidden[:, prompt_len - 1 :]  # response token t is predicted at prompt_len + t - 1


class Scorer:
    """Scores the same documents under many schedules; what all of them share is computed once.

    The prompts run at full depth under every schedule, and so do the first layers, which none may
    drop: their keys, values and hidden states are kept. A schedule then costs a pass over the
    response tokens through the other layers.

    Memory: ``B * (P + N)`` positions of KV cache and ``B * N * H`` hidden states, for B documents,
    the longest prompt P and the longest response N.

    Args:
        shared_layers: the first layers that no schedule drops from; more is faster.

    Raises:
        PromptError: a document has an empty prompt or response, or exceeds the model's context.
    """

    def __init__(
        self, model: LoadedModel, documents: Sequence[Document], shared_layers: int = 0
    ) -> None:
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
        self.share_layers(shared_layers)

    def share_layers(self, count: int) -> None:
        """Says that no schedule from now on drops from the first `count` layers."""
        self.shared_layers = count
        self._states: dict[str, Tensor] = {}
        if count and self._new_tokens > 1:
            self._keep_states()

    @property
    def kept_bytes(self) -> int:
        """What it holds between schedules: keys and values, and the shared layers' states."""
        return self._cache.nbytes + sum(state.nbytes for state in self._states.values())

    def score(self, schedule: DepthSchedule) -> list[ResponseScores]:
        """As the function `score`, for this scorer's documents.

        Raises:
            ScheduleError: the schedule does not fit the model, or drops from a shared layer.
        """
        self.model.check_schedule(schedule)
        early = [n for n in schedule.skip_order if parse_unit(n).layer < self.shared_layers]
        if early:
            raise ScheduleError(
                f'the schedule drops "{early[0]}", and the first {self.shared_layers} layers are '
                "shared",
                "score it with fewer shared layers",
            )
        hidden = self._first_hidden
        if self._new_tokens > 1:
            lengths = schedule.prefix_lengths(self._prompt_len, self._new_tokens)
            limits = {unit: length - self._prompt_len for unit, length in lengths.items()}
            if self._states:
                limits |= {str(layer): 0 for layer in range(self.shared_layers - 1)}
            hidden = torch.cat([hidden, self._respond(limits, self._states)], dim=1)
        return _score_rows(self.model, hidden, self.documents)

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

    def _keep_states(self) -> None:
        """Runs the response once at full depth and keeps what the last shared layer gives."""
        last = self.shared_layers - 1
        kept: list[Tensor] = []

        def keep(_module: object, _inputs: object, output: Any) -> None:
            kept.append(output if isinstance(output, Tensor) else output[0])

        hook = self.model.gate.layers[last].register_forward_hook(keep)
        try:
            self._respond({}, {})
        finally:
            hook.remove()
        self._states = {str(last): kept[0]}


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


def _score_rows(
    model: LoadedModel, hidden: Tensor, documents: Sequence[Document]
) -> list[ResponseScores]:
    """Applies the head in chunks; ``hidden`` is ``[B, >= N, H]``, from the last prompt position."""
    lengths = [len(document.response_ids) for document in documents]
    states = torch.cat([hidden[row, :length] for row, length in enumerate(lengths)])  # [T, H]
    targets = torch.tensor([id_ for document in documents for id_ in document.response_ids])
    log_probs, top_ids = [], []
    for part, wanted in zip(
        torch.split(states, head_chunk(model)),
        torch.split(targets.to(hidden.device), head_chunk(model)),
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
