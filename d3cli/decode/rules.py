"""What else a checkpoint's generation settings do to a reply: the rules for its tokens.

The settings are those of ``generation_config.json``, or of a ``config.json`` without one beside it,
by the names that `generate` of transformers knows. `GenerationRules` are applied;
`ignored_settings` names what is not. No torch.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from msgspec import Meta

from d3cli.base.errors import ModelError, Setting, Words
from d3cli.base.json_rows import convert_json

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Meta(gt=0)]
Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Tokens = tuple[Token, ...]
Sequence = Annotated[tuple[Token, ...], Meta(min_length=1)]

CORRECT = "correct or remove that key in the file"

# Applied only where the checkpoint samples, as `generate` does.
WARPERS = ("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True, slots=True)
class GenerationRules:
    """The rules of a checkpoint for the tokens of a reply; transformers documents each.

    Where transformers says "encoder", a decoder has its prompt.

    Raises:
        ValueError: a number is NaN or infinite.
    """

    sequence_bias: tuple[tuple[Sequence, float], ...] = ()
    encoder_repetition_penalty: Positive = 1.0
    no_repeat_ngram_size: Count = 0
    encoder_no_repeat_ngram_size: Count = 0
    bad_words_ids: tuple[Sequence, ...] = ()
    min_length: Count = 0
    min_new_tokens: Count = 0
    forced_bos_token_id: Token | None = None
    forced_eos_token_id: Token | Tokens | None = None
    exponential_decay_length_penalty: tuple[Count, Positive] | None = None
    suppress_tokens: Tokens = ()
    begin_suppress_tokens: Tokens = ()
    top_h: Annotated[float, Meta(gt=0, le=1)] | None = None
    typical_p: Positive = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    renormalize_logits: bool = False
    stop_strings: tuple[Annotated[str, Meta(min_length=1)], ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.changed().items():
            if any(isinstance(one, float) and not math.isfinite(one) for one in _leaves(value)):
                raise ValueError(f"{name} holds {value!r:.60}, which is not finite")

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "GenerationRules":
        """The rules in a checkpoint's generation settings.

        Raises:
            ModelError: a rule has a wrong type or is out of range.
        """
        skipped = () if settings.get("do_sample") else WARPERS
        names = [field.name for field in fields(cls) if field.name not in skipped]
        found = {name: settings[name] for name in names if settings.get(name) is not None}
        if isinstance(found.get("stop_strings"), str):
            found["stop_strings"] = [found["stop_strings"]]
        try:
            return convert_json(found, cls)
        except ValueError as error:
            raise ModelError(f"{file_of(settings)} cannot be used: {error}", CORRECT) from error

    def changed(self) -> dict[str, Any]:
        """The rules that do something, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    def check_tokens(self, vocabulary: int) -> None:
        """Raises ModelError if a rule names a token that the model does not have."""
        for name in (
            "sequence_bias",
            "bad_words_ids",
            "forced_bos_token_id",
            "forced_eos_token_id",
        ):
            ids = [one for one in _leaves(getattr(self, name)) if isinstance(one, int)]
            if max(ids, default=0) >= vocabulary:
                raise ModelError(
                    f"the checkpoint's generation settings cannot be used: {name} names token "
                    f"{max(ids):,}, but the model has {vocabulary:,}",
                    CORRECT,
                )


def file_of(settings: Mapping[str, Any]) -> str:
    """The file that a checkpoint's generation settings come from, in words."""
    return f"the checkpoint's {'' if 'model_type' in settings else 'generation_'}config.json"


def ignored_settings(settings: Mapping[str, Any], context: int) -> Words | None:
    """A note that names the settings that change what `generate` does and that d3 ignores.

    Args:
        settings: a checkpoint's generation settings.
        context: the tokens that the model holds; a larger limit of `generate` changes nothing.
    """
    limits: dict[str, Callable[[Any], bool]] = {
        name: lambda value: _is_number(value) and value < context
        for name in ("max_new_tokens", "max_length")
    }
    known = _IGNORED | limits
    found = [
        name
        for name, value in settings.items()
        if value is not None and name in known and known[name](value)
    ]
    if not found:
        return None
    words: list[str | Setting] = [
        f"ignored in {file_of(settings)}: {', '.join(found)}; d3 writes one reply, token by token"
    ]
    if limits.keys() & set(found):
        words += [", and ", Setting("max_tokens"), " limits its length"]
    return tuple(words)


def _above(limit: float) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and value > limit


def _is_set(value: Any) -> bool:
    return value not in (None, False, [], {}, "")


# What d3 does not apply, and whether a value of it changes anything.
_IGNORED: dict[str, Callable[[Any], bool]] = {
    "num_beams": _above(1),
    "num_beam_groups": _above(1),
    "num_return_sequences": _above(1),
    "penalty_alpha": _above(0),
    "guidance_scale": lambda value: _is_number(value) and value != 1,
    "dola_layers": _is_set,
    "constraints": _is_set,
    "force_words_ids": _is_set,
    "watermarking_config": _is_set,
    "token_healing": _is_set,
    "remove_invalid_values": _is_set,
    "max_time": _is_set,
    "cache_implementation": lambda value: value == "quantized",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
