"""How close two choices of a plain step are, beside what rounding alone changes there.

A pass over several tokens rounds differently from one over a single token, so a verification may
choose the other one of two nearly equal tokens. Knows nothing of drafts or text.
"""

from collections.abc import Sequence

from d3cli.decode.loop import decode_step, prefill
from d3cli.decode.lossless import read_few
from d3cli.decode.sampler import Sampler
from d3cli.model.model import LoadedModel

ROWS = 8  # tokens of the pass that is compared with a plain step


def gap_and_rounding(
    model: LoadedModel, sampler: Sampler, token_ids: Sequence[int], one: int, other: int
) -> tuple[float, float]:
    """How far apart the logits of two tokens are in a plain step, and what rounding changes there.

    Args:
        sampler: its penalties count in the first.
        token_ids: the prompt and the reply before the step.

    Returns:
        The second is the most that any logit changes if the last tokens are read in one pass.
    """
    cache = model.new_cache()
    cache.reserve(len(token_ids))
    for _ in prefill(model, cache, token_ids[:-1]):
        pass
    logits = decode_step(model, cache, token_ids[-1], ())
    scores = sampler.scores(logits, token_ids)
    few = token_ids[-ROWS:]
    cache.crop(len(token_ids) - len(few))
    changes = (read_few(model, cache, few)[-1] - logits).abs()
    # A logit of minus infinity masks its token in both.
    return abs(float(scores[one] - scores[other])), float(changes.nan_to_num(0.0).max())
