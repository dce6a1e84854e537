"""Lossless decoding: full depth's own reply, sooner.

Something cheap drafts a few tokens. One pass at full depth reads them all, and so tells what full
depth chooses after each. The draft counts up to the first token that differs, which is replaced.
Greedy replies are the same token for token; sampled ones have the same distribution (speculative
decoding: Leviathan et al., arXiv 2211.17192). A pass over several tokens rounds differently from
one over a single token, so below float32 two nearly equal logits may change places.

Knows nothing of text, chat or files.
"""

import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from d3cli.base.errors import GenerationError
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.draft.source import Draft, ReplyContext, Verification
from d3cli.decode.loop import DecodedToken, log_normalizer
from d3cli.decode.sampler import Sampler
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import DEFAULT_RESERVE, KVCache
from d3cli.model.model import LoadedModel


def decode_lossless(
    model: LoadedModel,
    cache: KVCache,
    logits: Tensor,
    drafter: Drafter,
    sampler: Sampler,
    *,
    schedule: DepthSchedule,
    prompt_ids: Sequence[int],
    max_tokens: int,
    eos_token_ids: Container[int] = (),
    with_entropy: bool = False,
    most_likely: int = 0,
    reserve: int = DEFAULT_RESERVE,
    verifications: list[Verification],
) -> Iterator[DecodedToken]:
    """Generates the reply that `decode` generates at full depth.

    Args:
        logits: the prefill's last logits, ``[V]``, which predict token 0.
        schedule: drafts, where a source needs one.
        prompt_ids: the tokens in the cache.
        eos_token_ids: tokens that end the reply.
        with_entropy, most_likely: see `decode`.
        reserve: tokens of the reply that a draft model's KV cache has room for at first.
        verifications: gains each pass at full depth.

    Raises:
        GenerationError: the logits of a step are not finite.
    """
    token_ids = list(prompt_ids)
    reply = ReplyContext(token_ids, cache, sampler.for_drafts(), schedule, reserve)
    drafter.begin(reply)
    accept = partial(
        _accept,
        model,
        sampler,
        token_ids,
        eos_token_ids=eos_token_ids,
        with_entropy=with_entropy,
        most_likely=most_likely,
    )
    chosen = accept(logits[None], Draft(), 0)
    step = 0
    while True:
        yield from chosen
        step += len(chosen)
        if step == max_tokens or token_ids[-1] in eos_token_ids:
            return
        began, held = time.perf_counter(), cache.position
        draft = drafter.draft(reply, max_tokens - step - 1)
        drafted = time.perf_counter()
        rows = read_few(model, cache, [token_ids[-1], *draft.token_ids])
        chosen = accept(rows, draft, step)
        cache.crop(held + len(chosen))
        done = Verification(
            step=step,
            tokens=len(chosen),
            source=draft.source,
            kind=draft.kind,
            draft_ids=tuple(draft.token_ids),
            accepted=sum(token.drafted_by is not None for token in chosen),
            draft_s=drafted - began,
            verify_s=time.perf_counter() - drafted,
        )
        verifications.append(done)
        drafter.learn(reply, done)


def _accept(
    model: LoadedModel,
    sampler: Sampler,
    token_ids: list[int],
    rows: Tensor,
    draft: Draft,
    first_step: int,
    *,
    eos_token_ids: Container[int],
    with_entropy: bool,
    most_likely: int,
) -> list[DecodedToken]:
    """The tokens that full depth chooses, up to the first one that was not drafted.

    Args:
        token_ids: the prompt and the reply so far; gains the tokens.
        rows: logits after the last token and after each drafted one, ``[S, V]``.
        first_step: of the first token.
    """
    chosen: list[DecodedToken] = []
    pairs = zip(rows, [*draft.token_ids, None], strict=True)
    for step, (row, drafted) in enumerate(pairs, start=first_step):
        try:
            normalizer = log_normalizer(row, step)
            if drafted is not None and draft.probabilities:
                drawn_from = draft.probabilities[step - first_step]
                token_id = sampler.verify(row, token_ids, drafted, drawn_from)
            else:
                # Drawing a token is accepting one that is certain in the draft, or replacing it.
                token_id = sampler.choose(row, token_ids)
        except GenerationError:
            if chosen:  # the reply has these, and fails in the next pass
                break
            raise
        token_ids.append(token_id)
        token = DecodedToken.chosen(
            step,
            token_id,
            row,
            normalizer,
            depth=model.num_layers,
            bytes_read=0,  # shared below
            with_entropy=with_entropy,
            most_likely=most_likely,
            drafted_by=draft.source if token_id == drafted else None,
        )
        chosen.append(token)
        if token_id != drafted or token_id in eos_token_ids:
            break
    share = (draft.bytes_read + model.weight_bytes.total) // len(chosen)
    return [replace(token, bytes_read=share) for token in chosen]


def read_few(model: LoadedModel, cache: KVCache, token_ids: Sequence[int]) -> Tensor:
    """Reads a few tokens at full depth; returns the logits after each, ``[S, V]`` float32."""
    ids = torch.tensor([token_ids], device=model.device)
    hidden = model.hidden_states(ids, cache)
    cache.commit(len(token_ids), full_depth=True)
    return model.logits(hidden[0])
