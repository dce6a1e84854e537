"""How many tokens a model holds, and which rotary table serves all of them.

A rotary table must stay the same for a whole conversation: keys in the KV cache keep the table that
they were computed with. Only then do a prefill in chunks, a repair and a single pass agree.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from d3cli.base.errors import ModelError, Setting, UsageError, Words
from d3cli.files.json_files import BAD_CONFIG

LARGEST = 2**31 - 1  # more positions than any model has
SHORTEST = 2  # a prompt and a reply
SCALINGS = {
    "yarn": "YaRN",
    "linear": "linear",
    "llama3": "Llama 3",
    "dynamic": "dynamic NTK",
    "longrope": "LongRoPE",
}
# transformers changes the rotary table of these when a sequence becomes longer.
CHANGING = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class Context:
    """How many tokens a model holds.

    Attributes:
        length: the tokens of prompt and reply together.
        fixed: whether the rotary table must be fixed for this length; see `fix_rotary_table`.
        note: what a user should know about the length.
    """

    length: int
    fixed: bool = False
    note: Words | None = None


def choose_context(
    name: str, config: Any, wanted: int | None = None, tokenizer_length: object = None
) -> Context:
    """The context of a model: what was asked for, else what its config describes.

    `max_position_embeddings` is the length that the model was made for, unless rope scaling was
    added later: then it is the original length times the factor. transformers keeps one rotary
    table for YaRN, linear and Llama 3 scaling. It changes the table of dynamic NTK and LongRoPE
    when a sequence grows beyond the original length, which is therefore the default for these. A
    longer context has to be asked for, and fixes the table.

    For linear scaling, transformers does not say whether a config states the length before or after
    it, and models differ. Where the tokenizer's own length is below the scaled one, it decides.

    Args:
        name: what to call the model in messages.
        config: its parsed config.
        wanted: the length asked for; None leaves the choice to the config.
        tokenizer_length: what the tokenizer states as `model_max_length`, if known.

    Raises:
        UsageError: the model does not hold so many tokens.
        ModelError: its context is too short for a prompt and a reply.
    """
    stated = int(config.max_position_embeddings)
    kind, factor, own, longest = _lengths(config, stated, tokenizer_length)
    _check(name, wanted, own, longest)
    scaling = f"{SCALINGS.get(kind, kind)} scaling"
    if wanted is not None and wanted > own and kind in CHANGING:
        return Context(
            wanted,
            fixed=True,
            note=f"{scaling} is fixed for {wanted:,} tokens, at any length of a text: short texts "
            "are computed slightly differently than by transformers",
        )
    if wanted is not None:
        return Context(wanted)
    return Context(own, note=_note(stated, own, longest, kind, factor))


def _note(stated: int, own: int, longest: int, kind: str, factor: float) -> Words | None:
    """What a user should know about a context that the config chose."""
    scaling = f"{SCALINGS.get(kind, kind)} scaling"
    if longest > own and kind not in CHANGING:
        return (
            f"the context is {own:,} tokens, as the tokenizer says; if config.json states the "
            f"length before {scaling} with the factor {factor:g}, ",
            Setting("context", str(longest)),
            " uses all of it",
        )
    if longest > own:
        return (
            f"the context is {own:,} tokens: beyond, {scaling} would change what the KV cache "
            "already holds; ",
            Setting("context", str(longest)),
            " fixes the scaling for that length",
        )
    if own > stated:
        return (
            f"the context is {own:,} tokens, by {scaling} with the factor {factor:g}; ",
            Setting("context"),
            " sets a shorter one",
        )
    return None


def _check(name: str, wanted: int | None, own: int, longest: int) -> None:
    """Refuses a context that is too short for a prompt and a reply, or longer than the longest."""
    if longest < SHORTEST or own < SHORTEST:
        raise ModelError(
            f"the context of {name} holds {own} tokens, too few for a prompt and a reply",
            BAD_CONFIG,
        )
    if wanted is not None and wanted < SHORTEST:
        raise UsageError(
            (Setting("context"), f" is {wanted:,}"),
            f"it must be at least {SHORTEST}: one token of prompt and one of reply",
        )
    if wanted is not None and wanted > longest:
        raise UsageError(
            (
                Setting("context"),
                f" is {wanted:,}, but by its config.json {name} holds {longest:,} tokens at most",
            ),
            f"use {longest:,} or fewer",
        )


def fix_rotary_table(causal_lm: Any, positions: int) -> None:
    """Makes dynamic NTK or LongRoPE scaling use one rotary table at every length.

    Args:
        positions: the longest sequence, whose table transformers would use.
    """
    for module in causal_lm.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str) and kind in CHANGING:
            table, module.attention_scaling = ROPE_INIT_FUNCTIONS[kind](
                module.config, module.inv_freq.device, seq_len=positions
            )
            module.register_buffer("inv_freq", table, persistent=False)
            module.rope_type = "default"  # which transformers never changes


def _lengths(config: Any, stated: int, tokenizer_length: object) -> tuple[str, float, int, int]:
    """How positions are scaled, the factor, the context by default and the longest possible."""
    rope, layered = _rope_of_full_attention(config)
    kind = str(rope.get("rope_type", "default"))
    factor, original = _factor(rope), _original(rope, config, stated)
    scaled = min(int(original * factor), LARGEST)
    if kind == "longrope":
        return kind, factor, min(stated, original), max(stated, scaled)
    if kind == "dynamic":
        return kind, factor, stated, stated if layered else max(stated, scaled)
    if kind == "llama3" and stated > original:
        scaled = stated  # the config states the long context
    if kind == "linear" and "original_max_position_embeddings" not in rope:
        if layered:
            scaled = stated  # Gemma 3, whose config states the long context
        elif isinstance(tokenizer_length, int) and stated <= tokenizer_length < scaled:
            return kind, factor, tokenizer_length, scaled
    if kind not in SCALINGS:
        scaled = stated
    return kind, factor, max(stated, scaled), max(stated, scaled)


def _rope_of_full_attention(config: Any) -> tuple[Mapping[str, Any], bool]:
    """The rotary parameters of the layers without a window; whether each type of layer has its own.

    Without rotary embeddings there are no parameters.
    """
    if not hasattr(type(config)(), "rope_parameters"):  # otherwise the family ignores it
        return {}, False
    rope = getattr(config, "rope_parameters", None) or {}
    layered = {key: inner for key, inner in rope.items() if isinstance(inner, dict)}
    if not layered:
        return rope, False
    return layered.get("full_attention", next(iter(layered.values()))), True


def _factor(rope: Mapping[str, Any]) -> float:
    """The factor of rope scaling; 1 if there is none or it shortens."""
    factor = rope.get("factor")
    if isinstance(factor, int | float) and math.isfinite(factor) and factor > 1:
        return float(factor)
    return 1.0


def _original(rope: Mapping[str, Any], config: Any, stated: int) -> int:
    """The context before scaling."""
    outside = getattr(config, "original_max_position_embeddings", None)
    return int(rope.get("original_max_position_embeddings") or outside or stated)
