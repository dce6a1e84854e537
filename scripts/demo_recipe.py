"""The recipe of a training run of the demo model, and its progress.

Pure values and the order of the data; no model, no optimizer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from demo_batches import Batch, stream
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a run; stored beside its log."""

    seed: int
    tokens: tuple[int, int, int]
    batch_tokens: int = 4096
    learning_rate: float = 4e-3
    last_part_learning_rate: float = 1.5e-3
    last_learning_rate: float = 4e-5
    warmup_tokens: int = 500_000
    weight_decay: float = 0.1
    full_depth_share: float = 0.75
    control: bool = False
    dtype: str = "bfloat16"  # of the products; weights and gradients are float32

    def rate(self, seen: int) -> float:
        """Linear warm-up, a cosine over the first two parts, and a lower one over the last."""
        if seen < self.warmup_tokens:
            return self.learning_rate * (seen + 1) / self.warmup_tokens
        top, begin, end = self.learning_rate, self.warmup_tokens, sum(self.tokens[:2])
        if seen >= end:
            top, begin, end = self.last_part_learning_rate, end, sum(self.tokens)
        done = min(1.0, (seen - begin) / max(1, end - begin))
        wave = 0.5 * (1 + math.cos(math.pi * done))
        return self.last_learning_rate + (top - self.last_learning_rate) * wave


@dataclass(slots=True)
class Progress:
    """The progress of a run: its position in the data, and its cost so far."""

    block: int = 0
    number: int = 0
    part: int = 0
    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, at: Progress) -> Iterator[Batch]:
    """The rest of the run from `at`, which the caller moves on; each part begins a block."""
    for part, end in enumerate(accumulate(recipe.tokens)):
        if at.part > part:
            continue
        if at.part < part:
            at.block, at.number, at.part = at.block + 1, 0, part
        rest = stream(tokenizer, recipe.seed, recipe.batch_tokens, at.block, at.number, part)
        for batch in rest:
            if at.seen >= end:
                break
            yield batch
