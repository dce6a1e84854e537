"""From logits to the next token: greedy, or sampled as transformers samples.

The warpers are transformers' own, in the order of `generate` (repetition penalty, temperature,
top-k, top-p, min-p), so a seed draws the tokens that `model.generate` draws with the same settings.
One default differs: without a top-k, transformers keeps the 50 most likely tokens, and d3 keeps
all. Knows nothing of models, depth or text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from d3cli.decode.sampling import SamplingParams


class Sampler:
    """Chooses tokens. It owns its random generator, so one sampler serves one reply.

    `choose` is one step of a reply. A caller that must compare distributions takes the two halves
    apart: `probabilities`, then `draw`.
    """

    def __init__(self, params: SamplingParams, device: torch.device | str = "cpu") -> None:
        self._is_greedy = params.is_greedy
        self._needs_ids = params.repetition_penalty != 1
        self._warpers = _warpers(params)
        self._generator = torch.Generator(device=device)
        if params.seed is not None:
            self._generator.manual_seed(params.seed)

    def choose(self, logits: Tensor, token_ids: Sequence[int]) -> int:
        """The next token; greedy takes the argmax and computes no probabilities.

        Args:
            logits: ``[V]`` float32, as the model computed them.
            token_ids: the prompt and the reply so far, which the repetition penalty looks at.
        """
        if self._is_greedy:
            return int(self._scores(logits, token_ids).argmax())
        return self.draw(self.probabilities(logits, token_ids))

    def probabilities(self, logits: Tensor, token_ids: Sequence[int]) -> Tensor:
        """The distribution ``[V]`` that the next token is drawn from; one-hot if greedy."""
        scores = self._scores(logits, token_ids)
        if self._is_greedy:
            return torch.zeros_like(scores).index_fill_(0, scores.argmax(), 1.0)
        return scores.softmax(dim=-1)

    def draw(self, probabilities: Tensor) -> int:
        """A token drawn from ``probabilities`` ``[V]``, which advances the random generator.

        A greedy sampler takes the most likely token instead, the lowest id in a tie.
        """
        if self._is_greedy:
            return int(probabilities.argmax())
        return int(torch.multinomial(probabilities, num_samples=1, generator=self._generator))

    def _scores(self, logits: Tensor, token_ids: Sequence[int]) -> Tensor:
        """Warped logits ``[V]``."""
        ids = torch.tensor([token_ids if self._needs_ids else []], dtype=torch.long)
        scores: Tensor = self._warpers(ids.to(logits.device), logits[None])  # [1, V]
        return scores[0]


def _warpers(params: SamplingParams) -> LogitsProcessorList:
    found = LogitsProcessorList()
    if params.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(penalty=params.repetition_penalty))
    if params.is_greedy:
        return found
    if params.temperature != 1:
        found.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        found.append(TopKLogitsWarper(top_k=params.top_k))
    if params.top_p < 1:
        found.append(TopPLogitsWarper(top_p=params.top_p))
    if params.min_p > 0:
        found.append(MinPLogitsWarper(min_p=params.min_p))
    return found
