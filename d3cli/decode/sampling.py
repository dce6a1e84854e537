"""From logits to the next token: greedy, or sampled the way transformers samples.

The warpers are transformers' own, in `generate`'s order (repetition penalty, temperature, top-k,
top-p, min-p), so that a seed gives the text that `model.generate` gives with the same settings.
(Where nobody names a top-k, transformers keeps the 50 likeliest tokens; we keep all.) Knows
nothing of models, depth or text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from d3cli.base.errors import ModelError, SamplingError

if TYPE_CHECKING:
    from torch import Tensor

# Takes raw logits [V] in float32 and the ids so far (prompt and reply); returns the next id.
Sampler = Callable[["Tensor", Sequence[int]], int]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; 1 samples from the model's own distribution.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
        min_p: drop tokens less likely than this share of the likeliest one's probability.
        repetition_penalty: above 1 makes tokens of the prompt and reply less likely.
        seed: makes sampling repeatable on one kind of hardware.

    Raises:
        SamplingError: a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name in ("top_k", "seed")
            if value is not None and not _is_number(value, whole=whole):
                kind = "a whole number" if whole else "a number"
                raise SamplingError(f"{_option(field.name)} is {value!r}", f"it must be {kind}")
        ranges = {
            "temperature": (
                self.temperature == 0 or 0.01 <= self.temperature <= 100,
                "0 (greedy) or between 0.01 and 100",
            ),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            "min_p": (0 <= self.min_p < 1, "at least 0 (off) and below 1"),
            "repetition_penalty": (
                0.01 <= self.repetition_penalty <= 100,
                "between 0.01 and 100; 1 is off",
            ),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "between 0 and 2**63 - 1"),
        }
        for name, (valid, allowed) in ranges.items():
            if not valid:
                raise SamplingError(
                    f"{_option(name)} is {getattr(self, name)}", f"it must be {allowed}"
                )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @classmethod
    def resolve(cls, given: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> "SamplingParams":
        """What the user gave, else what the checkpoint's generation settings say, else greedy.

        Args:
            given: fields by name; None where the user said nothing.
            checkpoint: the keys of ``generation_config.json`` as stored.

        A top-p, top-k or min-p from the user asks for sampling: where neither side names a
        temperature, it is then 1.

        Raises:
            SamplingError: a value from the user is outside its range.
            ModelError: one from the checkpoint is.
        """
        chosen: dict[str, Any] = {}
        if checkpoint.get("do_sample"):
            chosen["temperature"] = checkpoint.get("temperature")
            for name in ("top_k", "top_p", "min_p"):
                chosen[name] = checkpoint.get(name)
            if chosen["temperature"] is None:
                chosen["temperature"] = 1.0
        chosen["repetition_penalty"] = checkpoint.get("repetition_penalty")
        chosen |= {name: value for name, value in given.items() if value is not None}
        wants_sampling = any(given.get(name) is not None for name in ("top_k", "top_p", "min_p"))
        if wants_sampling and chosen.get("temperature") is None:
            chosen["temperature"] = 1.0
        try:
            return cls(**{name: value for name, value in chosen.items() if value is not None})
        except SamplingError as error:
            cls(**{name: value for name, value in given.items() if value is not None})
            raise ModelError(
                f"the checkpoint's generation_config.json cannot be used: {error.message}",
                "override it with a flag, for example --temperature 0",
            ) from error

    def with_seed(self) -> "SamplingParams":
        """The same settings with a seed, drawn at random where sampling needs one and has none."""
        if self.is_greedy or self.seed is not None:
            return self
        import secrets

        return replace(self, seed=secrets.randbits(32))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_number(value: object, *, whole: bool) -> bool:
    return type(value) is int or (type(value) is float and not whole)


def make_sampler(params: SamplingParams, device: str = "cpu") -> Sampler:
    """A function that picks the next token; sampling owns its random generator.

    Greedy ties go to the lowest id, as in ``torch.argmax``.
    """
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList()
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(penalty=params.repetition_penalty))
    if not params.is_greedy:
        if params.temperature != 1:
            steps.append(TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            steps.append(TopKLogitsWarper(top_k=params.top_k))
        if params.top_p < 1:
            steps.append(TopPLogitsWarper(top_p=params.top_p))
        if params.min_p > 0:
            steps.append(MinPLogitsWarper(min_p=params.min_p))
    needs_ids = params.repetition_penalty != 1
    generator = torch.Generator(device=device)
    if params.seed is not None:
        generator.manual_seed(params.seed)

    def sample(logits: "Tensor", token_ids: Sequence[int]) -> int:
        ids = torch.tensor([token_ids if needs_ids else []], dtype=torch.long, device=logits.device)
        scores = steps(ids, logits[None])  # [1, V]
        if params.is_greedy:
            return int(scores.argmax())
        probabilities = scores.softmax(dim=-1)
        return int(torch.multinomial(probabilities, num_samples=1, generator=generator))

    return sample
