"""Log-probabilities of a prompt's own tokens, at full depth, as the prompt is read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from d3cli.decode.loop import prefill, top_log_probs
from d3cli.model.model import LoadedModel
from d3cli.scoring.head import chunks, not_finite


@dataclass(frozen=True, slots=True)
class PromptToken:
    """One token of a prompt.

    Attributes:
        logprob: its raw log-probability after the tokens before it; None for the first one.
        most_likely: the most likely tokens there, with their log-probabilities.
    """

    token_id: int
    logprob: float | None
    most_likely: tuple[tuple[int, float], ...] = ()


def score_prompt(
    model: LoadedModel, prompt_ids: Sequence[int], most_likely: int = 0
) -> Iterator[list[PromptToken]]:
    """Scores a prompt, some tokens at a time, in their order.

    Args:
        most_likely: how many of the most likely tokens to note at each place.

    Raises:
        GenerationError: a logit is NaN or infinity. Minus infinity is fine: it masks a token.
    """
    yield [PromptToken(prompt_ids[0], None)]
    cache = model.new_cache()
    cache.reserve(len(prompt_ids))
    for chunk in prefill(model, cache, prompt_ids[:-1]):
        wanted = torch.tensor(prompt_ids[chunk.start + 1 :][: len(chunk.hidden)])
        for states, part in chunks(model, chunk.hidden, wanted.to(chunk.hidden.device)):
            scored = []
            for row, token_id in zip(model.logits(states), part.tolist(), strict=True):
                normalizer = float(row.logsumexp(dim=-1))
                if not math.isfinite(normalizer):
                    raise not_finite()
                scored.append(
                    PromptToken(
                        token_id,
                        float(row[token_id]) - normalizer,
                        top_log_probs(row, normalizer, most_likely),
                    )
                )
            yield scored
