"""How close two choices of a plain step are, beside what rounding alone changes there.

A pass over several tokens rounds differently from one over a single token, so a verification may
choose the other one of two nearly equal tokens. Knows nothing of drafts or text.
"""

from collections.abc import Sequence

from torch import Tensor

from d3cli.decode.loop import decode_step, prefill
from d3cli.decode.lossless import read_few
from d3cli.decode.sampler import Sampler
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel

# The last tokens are read again in passes of so many: kernels differ by the number of rows, and
# rounding also changes the keys and values that later tokens read.
PASSES, LAST = (2, 4, 8), 32


def gap_and_rounding(
    model: LoadedModel, sampler: Sampler, token_ids: Sequence[int], one: int, other: int
) -> tuple[float, float]:
    """How far apart the logits of two tokens are in a plain step, and what rounding changes there.

    Args:
        sampler: its penalties count in the first.
        token_ids: the prompt and the reply before the step.

    Returns:
        The second is the most that any logit changes if the last tokens are read several in one
        pass, in place of one by one.
    """
    cache = model.new_cache()
    cache.reserve(len(token_ids))
    for _ in prefill(model, cache, token_ids[:-1]):
        pass
    others = [decode_step(model, cache, token_ids[-1], ()).clone()]
    others += [_read_last(model, cache, token_ids, rows) for rows in PASSES]
    logits = _read_last(model, cache, token_ids, 1)
    scores = sampler.scores(logits, token_ids)
    # A logit of minus infinity masks its token in both.
    changes = [float((found - logits).abs().nan_to_num(0.0).max()) for found in others]
    return abs(float(scores[one] - scores[other])), max(changes)


def _read_last(model: LoadedModel, cache: KVCache, token_ids: Sequence[int], rows: int) -> Tensor:
    """The logits ``[V]`` after the last tokens, read again in passes of so many."""
    last = token_ids[-LAST:]
    cache.crop(len(token_ids) - len(last))
    for start in range(0, len(last), rows):
        few = last[start : start + rows]
        logits = (
            decode_step(model, cache, few[0], ()) if rows == 1 else read_few(model, cache, few)[-1]
        )
    return logits.clone()
