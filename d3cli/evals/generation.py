"""Generation arguments of lm-evaluation-harness' tasks, as settings of a reply.

Knows the names that the harness and transformers use, and nothing of models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d3cli.base.errors import SamplingError, UsageError
from d3cli.decode.sampling import SamplingParams

MAX_TOKENS = 256  # the harness' own default
# The names of the reply's length, in the harness' order of precedence.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@dataclass(frozen=True, slots=True)
class Generation:
    """How replies to one task are written.

    Attributes:
        sampling: the fields of `SamplingParams` that the task decides; the checkpoint decides the
            others.
        max_tokens: of a reply.
        until: texts that end a reply and are not part of it.
    """

    sampling: Mapping[str, Any]
    max_tokens: int
    until: tuple[str, ...]

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Generation":
        """Arguments by their names in a task.

        As in the harness, a reply is greedy unless `do_sample` is true or, where that is missing,
        the temperature is above 0. Where `do_sample` is true and no temperature is given, it is 1.

        Raises:
            UsageError: d3 does not know an argument, or a value is impossible.
        """
        known = {*LENGTHS, *SAMPLING, "do_sample", "until"}
        if unknown := sorted(given.keys() - known):
            raise UsageError(
                f'the task asks for the generation argument "{unknown[0]}", which d3 does not know',
                f"d3 knows {', '.join(sorted(known))}",
            )
        sampling = {name: given[name] for name in SAMPLING if given.get(name) is not None}
        do_sample, temperature = given.get("do_sample"), sampling.get("temperature")
        if do_sample and temperature == 0:
            raise UsageError("the task asks for do_sample=true at temperature 0", "change one")
        if not do_sample and (do_sample is not None or not temperature):
            sampling["temperature"] = 0
        elif temperature is None:
            sampling["temperature"] = 1.0
        try:
            SamplingParams.resolve(sampling, {})
        except SamplingError as error:
            raise UsageError(
                f"the task's generation arguments: {error.message}", error.hint
            ) from error
        return cls(sampling, _length(given), _stops(given.get("until")))


def _length(given: Mapping[str, Any]) -> int:
    name = next((name for name in LENGTHS if given.get(name) is not None), None)
    if name is None:
        return MAX_TOKENS
    value = given[name]
    if type(value) is not int or value < 1:
        raise UsageError(f"the task's {name} is {value!r}", "it must be a whole number, at least 1")
    return value


def _stops(until: Any) -> tuple[str, ...]:
    """Empty texts, which the harness ignores, are left out."""
    texts = [until] if isinstance(until, str) else [] if until is None else until
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"the task's until is {until!r}", "it must be a text, or a list of texts")
    return tuple(text for text in texts if text)
