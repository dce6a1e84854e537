"""Refuses a model that cannot run, from its description alone, before anything is loaded."""

import warnings
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
)

from d3cli.base.errors import ModelError, one_line
from d3cli.depth.families import (
    ENCODER_DECODER,
    OTHER_TYPE,
    UNLISTED,
    Family,
    find_family,
    not_proven,
)
from d3cli.files.json_files import BROKEN_FILES
from d3cli.files.safetensors import Description
from d3cli.files.vet_config import refuse_other_sizes, vet_config
from d3cli.kernels.bnb_linear import (
    Quantization,
    check_quantization,
)
from d3cli.model.kv_cache import KVCache

# Buffers that old checkpoints hold and that are computed today.
OLD_BUFFERS = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)


QUANTIZED = (".absmax", ".SCB")  # what bitsandbytes stores beside a weight in 4 bits, in 8 bits


LARGEST = 2**31 - 1  # more layers or positions than anything has


def check_config(
    model: Description,
    quantization: Quantization | None = None,
    *,
    full_depth_only: bool = False,
) -> Family:
    """Looks at the config and the tensors' names alone, before anything is built from them.

    A config that asks for more layers than there are would be built layer by layer before
    transformers notices, and one that asks for fewer would run as another model.

    Raises:
        ModelError: the stack is not supported, or the config cannot be right.
    """
    config, name = model.config, model.name
    model_type = config.get("model_type")
    vet_config(name, config)
    if not isinstance(model_type, str):
        raise ModelError(f"the config.json of {name} names no model_type", BROKEN_FILES)
    family = find_family(model_type)
    if family is UNLISTED:
        _check_unlisted(name, config)
        if not full_depth_only:
            raise not_proven(model_type)
    check_quantization(name, config, quantization)
    is_quantized = any(tensor.name.endswith(QUANTIZED) for tensor in model.tensors)
    if config.get("quantization_config") is not None and model.tensors and not is_quantized:
        raise ModelError(
            f"the config.json of {name} says that its weights are quantized, and they are not",
            BROKEN_FILES,
        )
    for key in ("num_hidden_layers", "n_layer", "sliding_window", "max_position_embeddings"):
        value = config.get(key)
        unused = value is None or (family is UNLISTED and key == "sliding_window" and value == 0)
        if not unused and (type(value) is not int or not 1 <= value <= LARGEST):
            raise ModelError(f"the config.json of {name} has the {key} {value!r}", BROKEN_FILES)
    for tensor in () if "quantization_config" in config else model.tensors:
        is_weight = tensor.name.endswith((".weight", ".bias"))
        if is_weight and not tensor.is_float and not tensor.name.endswith(OLD_BUFFERS):
            raise ModelError(
                f"{name} stores {tensor.name} as {tensor.dtype}, and does not say how to read that",
                "get the same model in bfloat16",
            )
    wanted = config.get("num_hidden_layers", config.get("n_layer"))
    layers = {tensor.layer for tensor in model.tensors if tensor.layer is not None}
    held = 1 + max(layers, default=-1)
    if wanted is not None and held and wanted != held:
        raise ModelError(
            f"the config.json of {name} asks for {wanted:,} layers, but the weights hold {held:,}",
            "config.json and the weights do not belong together",
        )
    return family


def _check_unlisted(name: str, config: dict[str, Any]) -> None:
    """Refuses, from the config alone, what cannot run even at full depth.

    Raises:
        ModelError: it is no plain decoder.
    """
    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING:
        own = ", and code that comes with a model is never run" if config.get("auto_map") else ""
        raise ModelError(
            f'transformers knows no models of the type "{model_type[:60]}", as {name} is{own}',
            OTHER_TYPE,
        )
    try:
        parsed = AutoConfig.for_model(**config)
    except MemoryError:
        raise
    except Exception as error:  # transformers raises every kind for odd values
        raise ModelError(
            f'the config.json of {name}, of the type "{model_type}", cannot be read: '
            f"{one_line(error)[:120]}",
            OTHER_TYPE,
        ) from error
    if getattr(parsed, "is_encoder_decoder", False):
        raise ModelError(
            f'models of the type "{model_type}" cannot run: {ENCODER_DECODER}', OTHER_TYPE
        )
    _model_class(parsed)
    if not isinstance(getattr(parsed, "max_position_embeddings", None), int):
        raise ModelError(
            f"the config.json of {name} does not say how long its context is", OTHER_TYPE
        )
    KVCache.for_config(parsed)


def check_sizes(model: Description, family: Family) -> None:
    """Refuses a config whose sizes are not those of the weights, before memory is asked for them.

    Raises:
        ModelError: with what contradicts what.
    """
    try:
        config = _without_choices(AutoConfig.for_model(**model.config))
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = _model_class(config)._from_config(config, attn_implementation=family.attention)
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers and torch raise every kind for odd values
        raise ModelError(
            f"no model can be built from the config.json of {model.name}: {one_line(error)}",
            BROKEN_FILES,
        ) from error
    refuse_other_sizes(model.name, built, model.tensors)


def _without_choices(config: Any) -> Any:
    """What computes a model, and in which form that comes back, is not its config's to choose."""
    config._attn_implementation = config._experts_implementation = None
    config.return_dict = True
    config.output_attentions = config.output_hidden_states = False
    return config


def _model_class(config: Any) -> Any:
    """The class of causal language models for this config."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise ModelError(
            f'models of the type "{config.model_type}" are no causal language models',
            OTHER_TYPE,
        )
    return found
