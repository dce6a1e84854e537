"""Replies that are written together: each pass reads the weights once for a token of each.

Decoding one sequence is bound by reading weights, so a few sequences take hardly longer than one.
Each keeps its own KV cache, attends to that alone, and is read by the same prefill as a single
reply; so nothing is padded. Each is as deep as alone: a layer runs for the rows that keep it. Knows
nothing of files, options or terminals.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from d3cli.base.errors import D3Error
from d3cli.decode.chunk import GenerationChunk
from d3cli.decode.loop import Choosing, prefill
from d3cli.decode.reply import Reply
from d3cli.model.decoder_pass import MOST_TOKENS
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel

# Sizes that are measured. A pass has at most `MOST_TOKENS` rows.
SIZES = (1, 2, 4, 8, MOST_TOKENS)
# A larger batch must be so much faster by the token: it also takes more memory.
LEAST_GAIN = 1.05
# Passes that are timed for each size; the fastest counts.
TIMINGS = 4
# Positions before the timed tokens, about those of a short prompt.
POSITIONS = 32


@dataclass(slots=True)
class Row:
    """A reply that is being written.

    Attributes:
        cache: holds the prompt and the reply but for its last token.
        choosing: chooses its tokens.
        logits: of the next token, ``[V]``.
    """

    reply: Reply
    cache: KVCache
    choosing: Choosing
    logits: Tensor

    @classmethod
    def begin(cls, reply: Reply) -> "Row":
        """Reads the reply's prompt; raises as `Reply.begin` does."""
        cache, logits = reply.begin()
        choosing = Choosing(reply.model, reply.schedule, reply.new_sampler(), reply.prompt_ids)
        return cls(reply, cache, choosing, logits)


def write_together(
    replies: Iterable[Reply], size: int
) -> Iterator[tuple[Reply, GenerationChunk | D3Error]]:
    """Writes replies of one model, up to `size` at a time, each with an engine of its own.

    Yields each reply with what its next token added to it, or with the error that ended it. A reply
    that ends leaves its row to the next one.

    Args:
        replies: made when there is room for them.
        size: 1 writes one after the other, as `Engine.stream` alone does. Lossless replies need 1.
    """
    waiting = iter(replies)
    if size == 1:
        for reply in waiting:
            yield from _write_alone(reply)
        return
    rows: list[Row] = []
    while True:
        started = 0
        for reply in islice(waiting, size - len(rows)):
            started += 1
            try:
                rows.append(Row.begin(reply))
            except D3Error as error:
                reply.end()
                yield reply, error
        if not rows and not started:
            return
        going_on = []
        for row in rows:
            try:
                chunk = row.reply.take(row.choosing.next(row.logits))
            except D3Error as error:
                row.reply.end()
                yield row.reply, error
                continue
            if chunk.finish_reason is None:
                going_on.append(row)
            yield row.reply, chunk
        rows = going_on
        read_last_tokens(rows)


def _write_alone(reply: Reply) -> Iterator[tuple[Reply, GenerationChunk | D3Error]]:
    try:
        for chunk in reply:
            yield reply, chunk
    except D3Error as error:
        yield reply, error


def read_last_tokens(rows: Sequence[Row]) -> None:
    """Reads the last token of each row, in one pass for up to `MOST_TOKENS` of them."""
    for first in range(0, len(rows), MOST_TOKENS):
        together = rows[first : first + MOST_TOKENS]
        model = together[0].reply.model
        hidden = model.states_of_rows(
            [row.choosing.token_ids[-1] for row in together],
            [row.cache for row in together],
            [row.choosing.dropped for row in together],
        )
        for row, logits in zip(together, model.logits(hidden), strict=True):  # [S, V]
            row.cache.commit(1, full_depth=not row.choosing.dropped)
            row.logits = logits


def best_size(model: LoadedModel, most: int) -> int:
    """The number of rows with the most tokens a second, measured on this machine.

    Args:
        most: a larger batch has no prompts or no memory.
    """
    if model.blocks is None or most == 1:
        return 1  # a pass over rows is for a CPU
    sizes = [*(size for size in SIZES if size < most), min(most, MOST_TOKENS)]
    # Different tokens: a mixture of experts would read the same experts for equal ones.
    vocabulary = model.causal_lm.get_input_embeddings().weight.shape[0]
    token_ids = [row * vocabulary // sizes[-1] for row in range(sizes[-1])]
    caches = [_cache(model, token_id) for token_id in token_ids]
    best, best_rate = 1, 0.0
    for size in sizes:
        times = (_time_of_pass(model, caches[:size], token_ids[:size]) for _ in range(TIMINGS))
        rate = size / min(times)
        if rate > best_rate * LEAST_GAIN:
            best, best_rate = size, rate
    return best


def _cache(model: LoadedModel, token_id: int) -> KVCache:
    """A KV cache with some positions."""
    cache = model.new_cache()
    for _ in prefill(model, cache, [token_id] * min(POSITIONS, model.context_length - 1)):
        pass
    return cache


def _time_of_pass(model: LoadedModel, caches: Sequence[KVCache], token_ids: Sequence[int]) -> float:
    """Seconds of one pass; the caches are as before."""
    began = time.perf_counter()
    model.logits(model.states_of_rows(token_ids, caches, [()] * len(caches)))
    taken = time.perf_counter() - began
    for cache in caches:
        cache.crop(cache.position)  # what was not committed
    return taken
