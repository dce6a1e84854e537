"""Refuses a model that cannot run, from its description alone, before anything is loaded."""

import warnings
from copy import deepcopy
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from d3cli.base.errors import ModelError, Setting, one_line
from d3cli.depth.families import (
    ENCODER_DECODER,
    OTHER_TYPE,
    UNLISTED,
    Family,
    find_family,
    not_proven,
)
from d3cli.files.safetensors import Description
from d3cli.files.vet_config import refuse_other_sizes, vet_config
from d3cli.kernels.quantization import OWN_KINDS, Quantization, check_quantization
from d3cli.model.config import model_class, parse_config, without_choices
from d3cli.model.kv_cache import KVCache

# Buffers that old checkpoints store and that are computed today.
OLD_BUFFERS = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)

QUANTIZED = (".absmax", ".SCB")  # stored by bitsandbytes beside a weight in 4 bits, in 8 bits

COUNTS = ("num_hidden_layers", "n_layer", "sliding_window", "max_position_embeddings")
LARGEST = 2**31 - 1  # more layers or positions than any model has


def check_config(
    model: Description,
    quantization: Quantization | None = None,
    *,
    full_depth_only: bool = False,
) -> tuple[Family, Any]:
    """Checks the config and the tensors' names, before anything is built from them.

    Returns the model's family and its parsed config.

    A config with too many layers would make transformers build them all before it notices that the
    weights hold fewer. A config with too few layers would run as another model.

    Raises:
        ModelError: the stack is not supported, or the config cannot be right.
    """
    name, model_type = model.name, model.config.get("model_type")
    vet_config(model)
    if not isinstance(model_type, str):
        raise ModelError(f"{model.stated_in} names no model_type", model.config_hint)
    family = find_family(model_type)
    if family is UNLISTED:
        parsed = _check_unlisted(model)
        if not full_depth_only:
            raise not_proven(model_type)
    _refuse_unmerged(model)
    check_quantization(name, model.config, quantization)
    if family is UNLISTED and quantization in OWN_KINDS:
        raise ModelError(
            f'{name} is of the type "{model_type}", which d3 cannot quantize itself: its code may '
            "need the weights as they are",
            ("leave out ", Setting("quantization")),
        )
    _check_stored_form(model)
    _check_counts(model, family)
    if family is not UNLISTED:
        parsed = parse_config(model)
    return family, parsed


def _check_unlisted(model: Description) -> Any:
    """Refuses a model that cannot run even at full depth; returns its parsed config.

    Raises:
        ModelError: it is not a plain decoder.
    """
    name, model_type = model.name, model.config["model_type"]
    if model_type not in CONFIG_MAPPING:
        has_code = model.config.get("auto_map")
        own = ", and d3 never runs code that comes with a model" if has_code else ""
        raise ModelError(
            f'{name} is of the type "{model_type[:60]}", which transformers does not know{own}',
            OTHER_TYPE,
        )
    parsed = parse_config(model, OTHER_TYPE)
    if getattr(parsed, "is_encoder_decoder", False):
        raise ModelError(
            f'models of the type "{model_type}" cannot run: {ENCODER_DECODER}', OTHER_TYPE
        )
    model_class(parsed)
    if not isinstance(getattr(parsed, "max_position_embeddings", None), int):
        raise ModelError(
            f"the config.json of {name} does not give the length of its context", OTHER_TYPE
        )
    KVCache.for_config(parsed)
    return parsed


def _refuse_unmerged(model: Description) -> None:
    """Raises ModelError if the weights were saved while an adapter was attached."""
    for tensor in model.tensors:
        if ".lora_A." in tensor.name or ".base_layer." in tensor.name:
            raise ModelError(
                f"{model.name} was saved with an adapter that is not merged: {tensor.name}",
                "save what peft's merge_and_unload() returns",
            )


def _check_stored_form(model: Description) -> None:
    """Raises ModelError if the config and the tensors disagree about quantized weights."""
    stored = model.config.get("quantization_config")
    is_quantized = any(tensor.name.endswith(QUANTIZED) for tensor in model.tensors)
    if stored is not None and model.tensors and not is_quantized:
        raise ModelError(
            f"the config.json of {model.name} says that its weights are quantized, but they are "
            "not",
            "delete its quantization_config, or copy the config.json that came with the weights",
        )
    for tensor in () if "quantization_config" in model.config else model.tensors:
        is_weight = tensor.name.endswith((".weight", ".bias"))
        if is_weight and not tensor.is_float and not tensor.name.endswith(OLD_BUFFERS):
            raise ModelError(
                f"{model.name} stores {tensor.name} as {tensor.dtype}, and its config does not say "
                "how to read that",
                "get the same model in bfloat16",
            )


def _check_counts(model: Description, family: Family) -> None:
    """Raises ModelError if the numbers of layers and positions cannot be right."""
    for key in COUNTS:
        value = model.config.get(key)
        unused = value is None or (family is UNLISTED and key == "sliding_window" and value == 0)
        if not unused and (type(value) is not int or not 1 <= value <= LARGEST):
            raise ModelError(f"{model.stated_in} sets {key} to {value!r}", model.config_hint)
    wanted = model.config.get("num_hidden_layers", model.config.get("n_layer"))
    layers = {tensor.layer for tensor in model.tensors if tensor.layer is not None}
    held = 1 + max(layers, default=-1)
    if wanted is not None and held and wanted != held:
        raise ModelError(
            f"{model.stated_in} asks for {wanted:,} layers, but the weights hold {held:,}",
            "config.json and the weights do not belong together",
        )


def check_sizes(model: Description, config: Any, family: Family) -> None:
    """Refuses a config whose sizes are not those of the weights, before it allocates memory.

    Args:
        config: the parsed config.

    Raises:
        ModelError: naming the sizes that disagree.
    """
    try:
        config = without_choices(deepcopy(config))  # building may change it
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = model_class(config)._from_config(config, attn_implementation=family.attention)
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers and torch may raise anything
        raise ModelError(
            f"no model can be built from {model.stated_in}: {one_line(error)}",
            model.config_hint,
        ) from error
    refuse_other_sizes(model, built)
