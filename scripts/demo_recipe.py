"""The recipe of a training run of the demo model, and its progress.

Pure values and the order of the data; no model, no optimizer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from demo_batches import Batch, stream
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a run; stored beside its log."""

    seed: int
    tokens: int
    late_tokens: int
    batch_tokens: int = 4096
    learning_rate: float = 4e-3
    late_learning_rate: float = 3e-3
    last_learning_rate: float = 1e-4
    warmup_tokens: int = 500_000
    weight_decay: float = 0.1
    full_depth_share: float = 0.8
    control: bool = False

    def rate(self, seen: int) -> float:
        """Linear warm-up and a cosine down to the last rate; then a second, lower cosine."""
        if seen < self.warmup_tokens:
            return self.learning_rate * (seen + 1) / self.warmup_tokens
        top, begin, end = self.learning_rate, self.warmup_tokens, self.tokens
        if seen >= self.tokens:
            top, begin, end = self.late_learning_rate, self.tokens, self.tokens + self.late_tokens
        done = min(1.0, (seen - begin) / max(1, end - begin))
        wave = 0.5 * (1 + math.cos(math.pi * done))
        return self.last_learning_rate + (top - self.last_learning_rate) * wave


@dataclass(slots=True)
class Progress:
    """The progress of a run: its position in the data, and its cost so far."""

    block: int = 0
    number: int = 0
    late: bool = False
    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, at: Progress) -> Iterator[Batch]:
    """The rest of the run from `at`, which the caller moves on; the late part begins a block."""

    def part(tokens_seen: int) -> Iterator[Batch]:
        rest = stream(
            tokenizer, recipe.seed, recipe.batch_tokens, at.block, at.number, late=at.late
        )
        for batch in rest:
            if at.seen >= tokens_seen:
                return
            yield batch

    if not at.late:
        yield from part(recipe.tokens)
        at.block, at.number, at.late = at.block + 1, 0, True
    yield from part(recipe.tokens + recipe.late_tokens)
