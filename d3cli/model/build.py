"""A model's files to a Hugging Face model and tokenizer, or to one clear error.

Safetensors only, never remote code. Knows nothing of gates, depth or replies.
"""

import ctypes
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
)
from transformers.utils import logging as hf_logging

from d3cli.base.errors import ModelError, is_panic
from d3cli.base.progress import ByteProgress
from d3cli.depth.families import (
    ENCODER_DECODER,
    OTHER_TYPE,
    UNLISTED,
    Family,
    find_family,
    not_proven,
)
from d3cli.files.json_files import BROKEN_FILES
from d3cli.files.names import ModelFiles
from d3cli.files.safetensors import (
    Description,
    lazy_state_dict,
    one_line,
    read_again,
)
from d3cli.files.vetting import refuse_other_sizes, vet_config
from d3cli.kernels.bnb_linear import (
    Quantization,
    check_quantization,
    import_bitsandbytes,
    is_converted,
    pack_for_cpu,
    quantization_config,
)
from d3cli.kernels.int8_linear import quantize_head
from d3cli.kernels.packed_linear import can_pack, pack_linears
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
MMAP_THRESHOLD = -3  # glibc's number of that parameter of mallopt


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


def load_weights(
    files: ModelFiles,
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
    *,
    head_in_8_bits: bool = False,
    progress: ByteProgress,
) -> tuple[Any, list[str]]:
    """The causal language model, in `dtype` or quantized, on `device`.

    Beside it the names of linears that could not be quantized.

    Args:
        progress: is told of each weight that was brought into another form.

    Raises:
        ModelError: the files are damaged, or a tensor is missing, misshapen or unexpected.
    """
    options: dict[str, Any] = {}
    unfit: list[str] = []
    converted = partial(is_converted, dtype=dtype, wanted=quantization)
    state = lazy_state_dict(files.path, converted, on_read=progress.add)
    try:
        with warnings.catch_warnings(), _no_progress_bar():
            warnings.simplefilter("ignore")  # transformers warns of its own deprecations
            config = _without_choices(
                AutoConfig.from_pretrained(files.path, trust_remote_code=False)
            )
            if quantization is not None:
                _give_freed_memory_back()
                settings, unfit = quantization_config(config, quantization, dtype, device)
                options = {"quantization_config": settings}
            if quantization is not None or hasattr(config, "quantization_config"):
                import_bitsandbytes()
                options["device_map"] = {"": device}  # quantized weights are made in their place
            model, report = _model_class(config).from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=dtype,
                attn_implementation=family.attention,
                ignore_mismatched_sizes=True,  # they are reported, and refused below by name
                output_loading_info=True,
                **options,
            )
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise  # the latter two are not the files' fault
    except Exception as error:  # transformers raises every kind for a broken checkpoint
        raise ModelError(
            f"{files.name} cannot be loaded: {one_line(error)}", BROKEN_FILES
        ) from error
    _refuse_wrong_tensors(files.name, report)
    if "device_map" not in options:
        model = model.to(device)
    if head_in_8_bits:
        quantize_head(model, partial(read_again, state))
    if can_pack(dtype, device) and family.can_skip:  # others' code may look at their weights
        pack_linears(model, partial(read_again, state), progress.add)
    if device.type == "cpu":
        _pack_4_bits(files.name, model, progress)
    return model, unfit


def _without_choices(config: Any) -> Any:
    """What computes a model, and in which form that comes back, is not its config's to choose."""
    config._attn_implementation = config._experts_implementation = None
    config.return_dict = True
    config.output_attentions = config.output_hidden_states = False
    return config


def _pack_4_bits(name: str, model: Any, progress: ByteProgress) -> None:
    try:
        pack_for_cpu(model, progress.add)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # every kind, where a checkpoint's own scales contradict its weights
        raise ModelError(
            f"the 4-bit weights of {name} are damaged: {one_line(error)}", BROKEN_FILES
        ) from error


def _refuse_wrong_tensors(name: str, report: dict[str, Any]) -> None:
    """Raises ModelError with the names of tensors that are missing, misshapen or unexpected."""
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    unexpected = [key for key in report["unexpected_keys"] if not key.endswith(OLD_BUFFERS)]
    problems = {
        "lacks": report["missing_keys"],
        "has the wrong shape for": mismatched,
        "has unexpected": unexpected,
    }
    for problem, keys in problems.items():
        if names := sorted(map(str, keys)):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"{name} {problem} tensors: {', '.join(names[:3])}{more}",
                "config.json and the weights do not belong together, or are incomplete",
            )


def _model_class(config: Any) -> Any:
    """The class of causal language models for this config."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise ModelError(
            f'models of the type "{config.model_type}" are no causal language models',
            OTHER_TYPE,
        )
    return found


def _give_freed_memory_back() -> None:
    """Lets large tensors return to the system as soon as they are freed, from now on.

    glibc else keeps freed blocks of up to 32 MB for later, and what converting and multiplying
    quantized weights frees adds up to several hundred megabytes.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 20)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """The library prints nothing, and so transformers must not either."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextmanager
def _silent_panics() -> Iterator[None]:
    """Rust writes of a panic to the process's stderr by itself, before anybody can catch it."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no stderr
        yield
        return
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def load_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer, tried once.

    Raises:
        ModelError: its files are missing or damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.path, trust_remote_code=False, local_files_only=True
        )
        with _silent_panics():
            tokenizer("A hostile setting may only fail once the tokenizer is used.")
    except MemoryError:
        raise
    except BaseException as error:  # as above
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(
            f"the tokenizer of {files.name} cannot be loaded: {one_line(error)}", BROKEN_FILES
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {files.name} is a {type(tokenizer).__name__}, which d3 cannot use",
            "use a model with a tokenizer.json",
        )
    return tokenizer
