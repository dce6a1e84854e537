"""Checks a stranger's config.json before transformers sees it; see `vet_files`."""

import re
from collections.abc import Iterator
from typing import Any

from d3cli.base.errors import ModelError
from d3cli.files.json_files import DO_NOT_USE
from d3cli.files.safetensors import SINGLE_FILE, Description

# What may compute attention or experts. transformers loads any other name as a code repository.
IMPLEMENTATIONS = {
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "grouped_mm",
    "batched_mm",
}
IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation(_internal)?")

SIZES = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "n_embd",
    "n_head",
    "num_attention_heads",
    "num_key_value_heads",
}
COUNTS = re.compile(
    r"(num|n)_.*(layers?|heads?|experts?|groups?|blocks?|stages?|labels)$|n_layer|n_head"
)
# Numbers that change every computation, by the range outside of which none makes sense. A larger
# or smaller one would only show after loading, as states that are not finite or text without sense.
RANGES = {
    re.compile(r".*(_eps|_epsilon)"): (0.0, 1.0),
    re.compile(r"rope_theta|rotary_emb_base|rope_local_base_freq"): (1.0, 1e15),
    re.compile(r"factor"): (1.0, 1e6),  # of rope scaling
}
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
MOST_LAYERS, MOST = 1_000, 10_000  # of layers, and of anything else that is built one by one

# Numbers in tables that are computed when a model is built, beyond four for each weight.
MOST_COMPUTED = 64 << 20
# bitsandbytes' scales of an 8-bit weight, one for each of its rows.
SCALES_OF_INT8 = ".SCB"
# transformers takes any class of its own by this name, even a model.
TOKENIZER_CLASS = re.compile(
    r"(?!Auto|Rag)\w*(Tokenizer|TokenizerFast)|(Tokenizers|SentencePiece|MistralCommon)Backend"
)


def vet_config(model: Description) -> None:
    """Refuses references to other code or files, and absurd counts, at any depth of a config.

    Raises:
        ModelError: the model should not be used.
    """
    where, config = model.stated_in, model.config
    if config.get("configuration_files"):
        raise ModelError(f"{where} names another config to use instead", DO_NOT_USE)
    vet_tokenizer_class(where, config)
    weights = config.get("transformers_weights")
    if weights is not None and weights != SINGLE_FILE:
        raise ModelError(
            f"{where} takes its weights from {weights!r:.100}",
            f"d3 reads {SINGLE_FILE}, or the files that its index names",
        )
    for key, value in entries(config):
        if IMPLEMENTATION.fullmatch(key):
            for wanted in value.values() if isinstance(value, dict) else [value]:
                known = isinstance(wanted, str) and wanted in IMPLEMENTATIONS
                if wanted is not None and not known:
                    raise ModelError(
                        f"{where} names other code to run: {key} {wanted!r:.100}", DO_NOT_USE
                    )
        if isinstance(value, int | float):
            _vet_number(model, key, value)


def _vet_number(model: Description, key: str, value: float) -> None:
    """Comparisons are written so that NaN fails them."""
    where, hint = model.stated_in, model.config_hint
    if key in SIZES and not value >= 1:
        raise ModelError(f"{where} has the {key} {value!r:.40}", hint)
    most = MOST_LAYERS if key in LAYERS else MOST
    if COUNTS.match(key) and not abs(value) <= most:
        raise ModelError(f"{where} has the {key} {value!r:.40}; the limit is {most:,}", hint)
    for names, (least, greatest) in RANGES.items():
        if names.fullmatch(key) and not least <= value <= greatest:
            raise ModelError(
                f"{where} has the {key} {value!r:.40}, outside {least:g} to {greatest:g}", hint
            )


def vet_tokenizer_class(where: str, config: dict[str, Any]) -> None:
    """Raises ModelError if `tokenizer_class` is not the name of a tokenizer."""
    wanted = config.get("tokenizer_class")
    if wanted is not None and not (isinstance(wanted, str) and TOKENIZER_CLASS.fullmatch(wanted)):
        raise ModelError(
            f"{where} has a tokenizer_class that is not a tokenizer: {wanted!r:.60}", DO_NOT_USE
        )


def refuse_other_sizes(model: Description, built: Any) -> None:
    """Refuses a config that describes another or a larger model than the files hold.

    transformers would build it, fill the missing weights with random numbers, and report that
    afterwards.

    Args:
        built: the model as its config describes it, on torch's meta device.

    Raises:
        ModelError: config and weights do not belong together.
    """
    wrong = "config.json and the weights do not belong together"
    if model.is_gguf:
        wrong = model.config_hint
    expected = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    quantized = bool(getattr(built.config, "quantization_config", None))
    there = 0
    for tensor in model.tensors:
        # 4-bit weights have another shape: at most eight of them are stored as one float32.
        there += 8 * tensor.numel if quantized else tensor.numel
        shape = tensor.shape
        if tensor.name.endswith(SCALES_OF_INT8):
            shape = expected.get(tensor.name.removesuffix(SCALES_OF_INT8) + ".weight", shape)[:1]
        elif not quantized:
            shape = expected.get(tensor.name, shape)
        if tensor.shape != shape:
            raise ModelError(
                f"{model.name} has the wrong shape for {tensor.name}: {list(tensor.shape)}, but "
                f"{model.stated_in} asks for {list(shape)}",
                wrong,
            )
    # Tied weights count once. Experts may be stored one by one, under other names.
    asked = sum(parameter.numel() for parameter in built.parameters())
    computed = sum(buffer.numel() for buffer in built.buffers())
    if computed > 4 * asked + MOST_COMPUTED:
        raise ModelError(f"{model.stated_in} asks for tables of {computed:,} numbers", DO_NOT_USE)
    if asked > there + there // 4:
        raise ModelError(
            f"{model.stated_in} asks for {asked:,} weights, but there are {there:,}", wrong
        )


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name in a JSON value with its value, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from entries(inner)
