"""Token ids to token ids: the D³ decode loop.

Prefill at full depth, then one decode step a token, each at its own depth (arXiv 2503.08524,
section 3). Knows nothing of text, chat or files.
"""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d3cli.base.errors import GenerationError, Setting
from d3cli.decode.sampler import Sampler
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import PREFILL_CHUNK, KVCache
from d3cli.model.model import LoadedModel


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Part of a prefill: the position it begins at and its final hidden states, ``[S, H]``."""

    start: int
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class DecodedToken:
    """One token of a reply.

    Attributes:
        step: ``t``, counted from 0; token 0 comes out of the prefill.
        token_id: the token chosen.
        depth: layers used to predict it.
        logprob: its raw log-probability, before penalties, temperature and warpers.
        top_id: the raw argmax at this step.
        bytes_read: bytes of weights that the pass which predicted it read. The prefill reads all
            of them for token 0; a byte ratio counts the decode steps only.
        entropy: of the raw distribution, in nats; None unless asked for.
    """

    step: int
    token_id: int
    depth: float
    logprob: float
    top_id: int
    bytes_read: int
    entropy: float | None = None


def prefill(
    model: LoadedModel, cache: KVCache, token_ids: Sequence[int], chunk_size: int = PREFILL_CHUNK
) -> Iterator[PrefillChunk]:
    """Reads tokens into the cache at full depth, chunk by chunk.

    The cache must not be ragged. A caller that needs the next token's logits applies
    `model.logits` to the last hidden state of the last chunk.
    """
    for offset in range(0, len(token_ids), chunk_size):
        ids = torch.tensor([token_ids[offset : offset + chunk_size]], device=model.device)  # [1, S]
        hidden = model.hidden_states(ids, cache)
        start = cache.position
        cache.commit(ids.shape[1], full_depth=True)
        yield PrefillChunk(start, hidden[0])


def decode_step(
    model: LoadedModel, cache: KVCache, token_id: int, dropped: Sequence[str]
) -> Tensor:
    """Reads one token with some units dropped; returns the next token's logits, ``[V]`` float32."""
    ids = torch.tensor([[token_id]], device=model.device)
    hidden = model.hidden_states(ids, cache, limits=dict.fromkeys(dropped, 0))
    cache.commit(1, full_depth=not dropped)
    return model.logits(hidden[0, -1])


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
) -> Iterator[DecodedToken]:
    """Generates a reply, token ``t`` at ``schedule.depth(t)``.

    Args:
        logits: the prefill's last logits, ``[V]``; they give token 0.
        prompt_ids: what the cache holds; the repetition penalty looks at it.
        eos_token_ids: the reply ends with the first of these.
        with_entropy: compute each token's entropy, which costs a pass over the logits.

    Raises:
        GenerationError: the logits of some step are not finite.
    """
    token_ids = list(prompt_ids)
    for step in range(max_tokens):
        if step:
            logits = decode_step(model, cache, token_ids[-1], schedule.dropped(step))
        normalizer = float(logits.logsumexp(dim=-1))  # NaN or inf as soon as one logit is
        if not math.isfinite(normalizer):
            raise GenerationError(
                f"the logits of step {step} are not finite, so no token can be chosen",
                (
                    "the weights may be damaged, or the dtype too narrow: try ",
                    Setting("dtype", "float32"),
                ),
            )
        token_id = sampler.choose(logits, token_ids)
        token_ids.append(token_id)
        yield DecodedToken(
            step=step,
            token_id=token_id,
            depth=schedule.depth(step),
            logprob=float(logits[token_id]) - normalizer,
            top_id=int(logits.argmax()),
            bytes_read=model.weight_bytes.read(schedule.dropped(step)),
            entropy=_entropy(logits, normalizer) if with_entropy else None,
        )
        if token_id in eos_token_ids:
            return


def _entropy(logits: Tensor, normalizer: float) -> float:
    """The entropy, in nats, of the distribution that ``logits`` ``[V]`` stand for."""
    # Clamped: a logit of minus infinity has the probability 0, and 0 times infinity is no number.
    log_probs = (logits - normalizer).clamp(min=torch.finfo(logits.dtype).min)
    return max(0.0, -float(torch.dot(log_probs.exp(), log_probs)))
