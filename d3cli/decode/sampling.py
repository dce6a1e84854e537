"""Sampling settings: how the next token is chosen. No torch; `sampler` does the choosing."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from d3cli.base.errors import ModelError, SamplingError, Setting
from d3cli.decode.rules import GenerationRules, file_of

WHOLE_NUMBERS = ("top_k", "seed")
CHECKPOINT_FIELDS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; 1 samples from the model's own distribution.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
        min_p: drop tokens less likely than this share of the top token's probability.
        repetition_penalty: above 1, tokens of the prompt and the reply become less likely.
        seed: makes sampling repeatable on one kind of hardware.
        rules: what else the checkpoint asks for; `resolve` reads them.

    Raises:
        SamplingError: a value is outside its range. Its `field` names the value.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    rules: GenerationRules = field(default_factory=GenerationRules)

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self) if each.name != "rules"):
            value = getattr(self, name)
            whole = name in WHOLE_NUMBERS
            if value is not None and not _is_number(value, whole=whole):
                _refuse(name, value, "a whole number" if whole else "a number")
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
                _refuse(name, getattr(self, name), allowed)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @classmethod
    def resolve(cls, given: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> "SamplingParams":
        """The user's settings, else the checkpoint's generation settings, else greedy.

        If the user sets top-p, top-k or min-p and neither side sets a temperature, it is 1.

        Args:
            given: the user's settings by name; None where a setting was not given.
            checkpoint: its generation settings: the contents of ``generation_config.json``.

        Raises:
            SamplingError: a setting of the user is outside its range.
            ModelError: a setting of the checkpoint is outside its range.
        """
        chosen: dict[str, Any] = {}
        if checkpoint.get("do_sample"):
            chosen = {name: checkpoint.get(name) for name in CHECKPOINT_FIELDS}
            if chosen["temperature"] is None:
                chosen["temperature"] = 1.0
        chosen["repetition_penalty"] = checkpoint.get("repetition_penalty")
        chosen |= _set(given)
        wants_sampling = any(given.get(name) is not None for name in ("top_k", "top_p", "min_p"))
        if wants_sampling and chosen.get("temperature") is None:
            chosen["temperature"] = 1.0
        try:
            params = cls(**_set(chosen))
        except SamplingError as error:
            cls(**_set(given))  # raises if the user's own settings are at fault
            raise ModelError(
                f"{file_of(checkpoint)} cannot be used: {error.message}",
                ("set it yourself, for example ", Setting("temperature", "0")),
            ) from error
        return replace(params, rules=GenerationRules.read(checkpoint))

    def with_seed(self) -> "SamplingParams":
        """The same settings, with a random seed if sampling needs one and has none."""
        if self.is_greedy or self.seed is not None:
            return self
        import secrets

        return replace(self, seed=secrets.randbits(32))


def _set(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _is_number(value: object, *, whole: bool) -> bool:
    return type(value) is int or (type(value) is float and not whole)


def _refuse(name: str, value: object, allowed: str) -> None:
    raise SamplingError((Setting(name), f" is {value!r}"), f"it must be {allowed}")
