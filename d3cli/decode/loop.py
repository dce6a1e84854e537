"""The D³ decode loop, from token ids to token ids.

A prefill at full depth, then one decode step per token, each at its own depth (arXiv 2503.08524,
section 3). Knows nothing of text, chat or files.
"""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from d3cli.base.errors import GenerationError, Setting
from d3cli.decode.sampler import Sampler
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.influence_table import InfluenceTable
from d3cli.model.kv_cache import PREFILL_CHUNK, KVCache
from d3cli.model.model import LoadedModel

# What drafts in a lossless reply.
SourceName = Literal["lookup", "depth", "model"]


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Part of a prefill: the position of its first token, and final hidden states ``[S, H]``."""

    start: int
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class DecodedToken:
    """One token of a reply.

    Attributes:
        step: ``t``, counted from 0; the prefill predicts token 0.
        token_id: the chosen token.
        depth: layers used to predict it.
        logprob: its raw log-probability, before penalties, temperature and warpers.
        top_id: the raw argmax at this step.
        bytes_read: weights read by the pass that predicted it, in bytes. For token 0 these are all
            weights, since a prefill runs at full depth. A byte ratio counts the decode steps only.
        entropy: of the raw distribution, in nats; None unless requested.
        most_likely: the most likely tokens with their raw log-probabilities, as many as requested.
        drafted_by: what drafted it, in a lossless reply; None if full depth chose it by itself.
    """

    step: int
    token_id: int
    depth: float
    logprob: float
    top_id: int
    bytes_read: int
    entropy: float | None = None
    most_likely: tuple[tuple[int, float], ...] = ()
    drafted_by: SourceName | None = None

    @classmethod
    def chosen(
        cls,
        step: int,
        token_id: int,
        logits: Tensor,
        normalizer: float,
        *,
        depth: float,
        bytes_read: int,
        with_entropy: bool = False,
        most_likely: int = 0,
        drafted_by: SourceName | None = None,
    ) -> "DecodedToken":
        """The token that was chosen from ``logits`` ``[V]``, whose `normalizer` this is."""
        return cls(
            step=step,
            token_id=token_id,
            depth=depth,
            logprob=float(logits[token_id]) - normalizer,
            top_id=int(logits.argmax()),
            bytes_read=bytes_read,
            entropy=_entropy(logits, normalizer) if with_entropy else None,
            most_likely=top_log_probs(logits, normalizer, most_likely),
            drafted_by=drafted_by,
        )


def prefill(
    model: LoadedModel,
    cache: KVCache,
    token_ids: Sequence[int],
    chunk_size: int = PREFILL_CHUNK,
    influence: InfluenceTable | None = None,
) -> Iterator[PrefillChunk]:
    """Reads tokens into the cache at full depth, chunk by chunk.

    The cache must not be ragged. To get the next token's logits, apply `model.logits` to the last
    hidden state of the last chunk.

    Args:
        influence: gains the units' influence at the positions that it does not know yet.
    """
    for offset in range(0, len(token_ids), chunk_size):
        ids = torch.tensor([token_ids[offset : offset + chunk_size]], device=model.device)  # [1, S]
        start = cache.position
        meter = None if influence is None else influence.new_meter(model.gate, start)
        hidden = model.hidden_states(ids, cache, meter=meter)
        cache.commit(ids.shape[1], full_depth=True)
        if influence is not None and meter is not None:
            influence.write(start, ids.shape[1], meter.rows()[0])
        yield PrefillChunk(start, hidden[0])


def decode_step(
    model: LoadedModel, cache: KVCache, token_id: int, dropped: Sequence[str]
) -> Tensor:
    """Reads one token with some units dropped; returns the next token's logits, ``[V]`` float32."""
    ids = torch.tensor([[token_id]], device=model.device)
    hidden = model.hidden_states(ids, cache, limits=dict.fromkeys(dropped, 0))
    cache.commit(1, full_depth=not dropped)
    return model.logits(hidden[0, -1])


class Choosing:
    """Chooses the tokens of one reply by its logits, token ``t`` at ``schedule.depth(t)``.

    Args:
        model: whose logits they are.
        prompt_ids: the repetition penalty looks at them.
        with_entropy: compute each token's entropy, at the cost of a pass over the logits.
        most_likely: how many of the most likely tokens to note at each step.

    Attributes:
        token_ids: the prompt and the reply so far.
        dropped: the units that the pass for the next token drops.
    """

    def __init__(
        self,
        model: LoadedModel,
        schedule: DepthSchedule,
        sampler: Sampler,
        prompt_ids: Sequence[int],
        *,
        with_entropy: bool = False,
        most_likely: int = 0,
    ) -> None:
        self._schedule, self._sampler = schedule, sampler
        self._with_entropy, self._most_likely = with_entropy, most_likely
        self.token_ids = list(prompt_ids)
        self.dropped: Sequence[str] = ()
        self._step = 0
        # Once for all tokens: for a hundred units it takes as long as some layers of a small model.
        self._bytes_read = model.weight_bytes.read_by_dropped(schedule.skip_order)

    def next(self, logits: Tensor) -> DecodedToken:
        """The next token, from the logits ``[V]`` of the pass before it.

        Raises:
            GenerationError: the logits are not finite.
        """
        step = self._step
        normalizer = log_normalizer(logits, step)
        token_id = self._sampler.choose(logits, self.token_ids)
        token = DecodedToken.chosen(
            step,
            token_id,
            logits,
            normalizer,
            depth=self._schedule.depth(step),
            bytes_read=self._bytes_read[len(self.dropped)],
            with_entropy=self._with_entropy,
            most_likely=self._most_likely,
        )
        self.token_ids.append(token_id)
        self._step += 1
        self.dropped = self._schedule.dropped(self._step)
        return token


def decode(
    model: LoadedModel,
    cache: KVCache,
    logits: Tensor,
    schedule: DepthSchedule,
    sampler: Sampler,
    *,
    prompt_ids: Sequence[int],
    max_tokens: int,
    eos_token_ids: Container[int] = (),
    with_entropy: bool = False,
    most_likely: int = 0,
) -> Iterator[DecodedToken]:
    """Generates a reply, token ``t`` at ``schedule.depth(t)``.

    Args:
        logits: the prefill's last logits, ``[V]``, which predict token 0.
        prompt_ids: the tokens in the cache; the repetition penalty looks at them.
        eos_token_ids: tokens that end the reply.
        with_entropy: compute each token's entropy, at the cost of a pass over the logits.
        most_likely: how many of the most likely tokens to note at each step.

    Raises:
        GenerationError: the logits of a step are not finite.
    """
    choosing = Choosing(
        model,
        schedule,
        sampler,
        prompt_ids,
        with_entropy=with_entropy,
        most_likely=most_likely,
    )
    for step in range(max_tokens):
        if step:
            logits = decode_step(model, cache, choosing.token_ids[-1], choosing.dropped)
        token = choosing.next(logits)
        yield token
        if token.token_id in eos_token_ids:
            return


def log_normalizer(logits: Tensor, step: int) -> float:
    """``log(sum(exp(logits)))`` of the logits ``[V]`` of a step.

    Raises:
        GenerationError: a logit is NaN or infinity. Minus infinity is fine: it masks a token.
    """
    normalizer = float(logits.logsumexp(dim=-1))
    if not math.isfinite(normalizer):
        raise GenerationError(
            f"the logits of step {step} are not finite, so no token can be chosen",
            (
                "the weights may be damaged, or the dtype too narrow: try ",
                Setting("dtype", "float32"),
            ),
        )
    return normalizer


def top_log_probs(logits: Tensor, normalizer: float, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` most likely tokens of ``logits`` ``[V]``, with their log-probabilities."""
    if not count:
        return ()
    top = logits.topk(min(count, len(logits)))
    return tuple(zip(top.indices.tolist(), (top.values - normalizer).tolist(), strict=True))


def _entropy(logits: Tensor, normalizer: float) -> float:
    """Entropy, in nats, of the distribution with ``logits`` ``[V]``."""
    # Clamped, since a logit of minus infinity would make 0 * -inf, which is NaN.
    log_probs = (logits - normalizer).clamp(min=torch.finfo(logits.dtype).min)
    return max(0.0, -float(torch.dot(log_probs.exp(), log_probs)))
