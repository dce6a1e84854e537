"""What a stranger's config.json may say, before transformers sees it."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from d3cli.base.errors import ModelError
from d3cli.files.json_files import BROKEN_FILES, DO_NOT_USE
from d3cli.files.safetensors import SINGLE_FILE, TensorInfo

# What may compute attention or experts: transformers takes any other name for a repository of code.
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


# How many there are of something: each may be built one by one.
MOST_LAYERS, MOST = 1_000, 10_000


LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


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


# Numbers in tables that are computed when a model is built, beyond four for each weight.
MOST_COMPUTED = 64 << 20


def vet_config(name: str, config: dict[str, Any]) -> None:
    """Refuses code of others and absurd counts, however deep in a config they stand.

    Raises:
        ModelError: it should not be used.
    """
    if config.get("configuration_files"):
        raise ModelError(
            f"the config.json of {name} names another config to use instead", DO_NOT_USE
        )
    vet_tokenizer_class(f"the config.json of {name}", config)
    elsewhere = config.get("transformers_weights")
    if elsewhere is not None and elsewhere != SINGLE_FILE:
        raise ModelError(
            f"the config.json of {name} wants its weights from {elsewhere!r:.100}",
            f"d3 reads {SINGLE_FILE}, or the files that its index names",
        )
    for key, value in entries(config):
        if IMPLEMENTATION.fullmatch(key):
            for wanted in value.values() if isinstance(value, dict) else [value]:
                known = isinstance(wanted, str) and wanted in IMPLEMENTATIONS
                if wanted is not None and not known:
                    raise ModelError(
                        f"the config.json of {name} names other code to run: {key} {wanted!r:.100}",
                        DO_NOT_USE,
                    )
        if key in SIZES and isinstance(value, int | float) and not value >= 1:
            raise ModelError(f"the config.json of {name} has the {key} {value!r:.40}", BROKEN_FILES)
        is_count = COUNTS.match(key) and isinstance(value, int | float)
        most = MOST_LAYERS if key in LAYERS else MOST
        if is_count and not abs(value) <= most:  # NaN is no count, either
            raise ModelError(
                f"the config.json of {name} has the {key} {value!r:.40}, and may have {most:,}",
                BROKEN_FILES,
            )


def refuse_other_sizes(name: str, built: Any, held: Iterable[TensorInfo]) -> None:
    """Refuses a config that describes a larger model than the files hold.

    transformers would build it, fill what is missing with random numbers, and only then report.

    Args:
        built: the model as its config describes it, on torch's meta device.
        held: the tensors in the files.

    Raises:
        ModelError: config and weights do not belong together.
    """
    wrong = "config.json and the weights do not belong together"
    expected = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    quantized = bool(getattr(built.config, "quantization_config", None))
    there = 0
    for tensor in held:
        # Of 4-bit weights eight are stored as a float32, at most, in another shape.
        there += 8 * tensor.numel if quantized else tensor.numel
        shape = tensor.shape
        if tensor.name.endswith(SCALES_OF_INT8):  # bitsandbytes': one for each row of a weight
            shape = expected.get(tensor.name.removesuffix(SCALES_OF_INT8) + ".weight", shape)[:1]
        elif not quantized:
            shape = expected.get(tensor.name, shape)
        if tensor.shape != shape:
            raise ModelError(
                f"{name} has the wrong shape for {tensor.name}: {list(tensor.shape)}, where its "
                f"config.json asks for {list(shape)}",
                wrong,
            )
    # Tied weights count once; experts may be stored one by one, under other names.
    asked = sum(parameter.numel() for parameter in built.parameters())
    computed = sum(buffer.numel() for buffer in built.buffers())
    if computed > 4 * asked + MOST_COMPUTED:
        raise ModelError(
            f"the config.json of {name} asks for tables of {computed:,} numbers", BROKEN_FILES
        )
    if asked > there + there // 4:
        raise ModelError(
            f"the config.json of {name} asks for {asked:,} weights, but there are {there:,}", wrong
        )


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name of a JSON value with what it stands for, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from entries(inner)


SCALES_OF_INT8 = ".SCB"


# transformers takes any class of its own by this name, models too.
TOKENIZER_CLASS = re.compile(
    r"(?!Auto|Rag)\w*(Tokenizer|TokenizerFast)|(Tokenizers|SentencePiece|MistralCommon)Backend"
)


def vet_tokenizer_class(where: str, config: dict[str, Any]) -> None:
    """Raises ModelError where `tokenizer_class` is not the name of a tokenizer."""
    wanted = config.get("tokenizer_class")
    if wanted is not None and not (isinstance(wanted, str) and TOKENIZER_CLASS.fullmatch(wanted)):
        raise ModelError(
            f"{where} names a tokenizer_class that is none: {wanted!r:.60}", DO_NOT_USE
        )
