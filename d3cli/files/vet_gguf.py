"""Checks the sizes that a GGUF file's metadata states, before transformers sees them.

An error names the metadata's own key. Without these checks, transformers' errors would name its own
settings, and for a missing key it would take the size of another model.
"""

import math
from collections.abc import Iterator
from typing import TypeGuard

from d3cli.base.errors import ModelError
from d3cli.base.inert import quoted
from d3cli.files.gguf import GgufModel
from d3cli.files.gguf_metadata import Value
from d3cli.files.json_files import BAD_METADATA, OTHER_FORMAT

EMBEDDINGS = "token_embd.weight"
HEADS, KV_HEADS = "attention.head_count", "attention.head_count_kv"
HEAD_DIM, ROTATED = "attention.key_length", "rope.dimension_count"
EXPERTS, USED = "expert_count", "expert_used_count"
# llama.cpp requires these keys as well.
REQUIRED = ("block_count", "context_length", "embedding_length", "feed_forward_length", HEADS)
RMS, LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
LAYER_NORMS = ("gpt2", "stablelm", "starcoder2")  # the other architectures have RMS norms
OF_EXPERTS = ("qwen3moe",)  # always a mixture
# transformers demands whole heads of these, even where the size of a head is stated.
WHOLE_HEADS = ("llama", "gemma2", "gemma3")
SHORTEST = 2  # tokens: a prompt and a reply
LARGEST = 2**31 - 1  # no model has more of anything that is counted
# Other numbers that transformers computes with.
NUMBERS = (
    RMS,
    LAYER,
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
# Sampling settings, by the range outside of which none makes sense.
SAMPLING = {
    "temp": (0.0, 1e6),
    "top_k": (-1, LARGEST),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "penalty_repeat": (1e-9, 1e6),
}


def vet_gguf(name: str, model: GgufModel) -> None:
    """Refuses sizes that are missing, or that contradict each other or the embeddings.

    Args:
        name: what to call the model in messages.

    Raises:
        ModelError: naming the key.
    """
    if (problem := next(_problems(model), None)) is not None:
        raise ModelError(f"the metadata of {name} {problem}", BAD_METADATA)
    for suffix in (*REQUIRED, KV_HEADS):
        if isinstance(_value(model, suffix), tuple):
            raise ModelError(
                f"the metadata of {name} states {_key(model, suffix)} for each layer, but d3 reads "
                "only models whose layers have the same sizes",
                OTHER_FORMAT,
            )


def _problems(model: GgufModel) -> Iterator[str]:
    """What is wrong with the metadata, as the end of a sentence."""

    def stated(suffix: str) -> str:
        return f"{_key(model, suffix)} {_shown(_value(model, suffix))}"

    mixture = model.architecture in OF_EXPERTS or bool(_value(model, EXPERTS))
    epsilon = LAYER if model.architecture in LAYER_NORMS else RMS
    for suffix in (*REQUIRED, epsilon, *((EXPERTS, USED) if mixture else ())):
        if _value(model, suffix) is None:
            yield f"lacks the key {_key(model, suffix)}"
    for suffix in (*REQUIRED, KV_HEADS, HEAD_DIM, EXPERTS, USED):
        value = _value(model, suffix)
        checked = mixture or suffix not in (EXPERTS, USED)
        if checked and value is not None and not isinstance(value, tuple) and not _counts(value):
            yield f"says {stated(suffix)}, but it must be a whole number from 1 to {LARGEST:,}"
    for suffix in NUMBERS:
        value = _value(model, suffix)
        if value is not None and not _is_finite(value):
            yield f"says {stated(suffix)}, but it must be a number"
    length = _value(model, "context_length")
    if isinstance(length, int) and length < SHORTEST:
        yield f"says {stated('context_length')}, which is too short for a prompt and a reply"
    hidden, heads, kv_heads = (_value(model, key) for key in ("embedding_length", HEADS, KV_HEADS))
    whole = model.architecture in WHOLE_HEADS or _value(model, HEAD_DIM) is None
    if whole and isinstance(hidden, int) and isinstance(heads, int) and hidden % heads:
        yield f"says {stated('embedding_length')}, which {stated(HEADS)} does not divide"
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        yield f"says {stated(HEADS)}, which {stated(KV_HEADS)} does not divide"
    for suffix in (HEAD_DIM, ROTATED):
        value = _value(model, suffix)
        if isinstance(value, int) and value % 2:
            yield f"says {stated(suffix)}, but rotary positions need an even number"
    yield from _experts(model, mixture=mixture)
    yield from _sampling(model)
    columns = model.tensors[EMBEDDINGS].shape[-1] if EMBEDDINGS in model.tensors else hidden
    if columns != hidden:
        yield f"says {stated('embedding_length')}, but the rows of {EMBEDDINGS} have {columns:,}"


def _experts(model: GgufModel, *, mixture: bool) -> Iterator[str]:
    held, used = _value(model, EXPERTS), _value(model, USED)
    if mixture and isinstance(held, int) and isinstance(used, int) and used > held:
        yield (
            f"says {_key(model, USED)} {_shown(used)}, more than {_key(model, EXPERTS)} "
            f"{_shown(held)}"
        )


def _sampling(model: GgufModel) -> Iterator[str]:
    for name, (least, greatest) in SAMPLING.items():
        key = f"general.sampling.{name}"
        value = model.metadata.get(key)
        if value is not None and not (_is_finite(value) and least <= value <= greatest):
            yield f"says {key} {_shown(value)}, which is no such setting"


def _key(model: GgufModel, suffix: str) -> str:
    return f"{model.architecture}.{suffix}"


def _value(model: GgufModel, suffix: str) -> Value | None:
    return model.metadata.get(_key(model, suffix))


def _counts(value: Value) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _is_finite(value: Value) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _shown(value: Value | None) -> str:
    return f"{value:,}" if type(value) is int else quoted(str(value)[:40])
