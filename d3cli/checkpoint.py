"""A model's files to a Hugging Face model and tokenizer, or to one clear error.

Safetensors only, never remote code. Knows nothing of gates, depth or replies.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from d3cli.errors import ModelError
from d3cli.families import Family, find_family
from d3cli.files import BROKEN_FILES, ModelFiles, read_json, weight_files
from d3cli.quantization import Quantization, check_quantization, quantization_config

# Buffers that old checkpoints hold and that are computed today.
OLD_BUFFERS = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)


def check_config(files: ModelFiles, quantization: Quantization | None = None) -> Family:
    """Looks at the config and the weights' names alone, before anything is built from them.

    A config that asks for more layers than there are would be built layer by layer before
    transformers notices, and one that asks for fewer would run as another model.

    Raises:
        ModelError: the stack is not supported, or the config cannot be right.
    """
    path = files.path / "config.json"
    config = read_json(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"{path} names no model_type", BROKEN_FILES)
    family = find_family(model_type)
    check_quantization(files.name, config, quantization)
    for name in ("num_hidden_layers", "n_layer", "sliding_window", "max_position_embeddings"):
        value = config.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise ModelError(f"{path} has the {name} {value!r}", BROKEN_FILES)
    wanted = config.get("num_hidden_layers", config.get("n_layer"))
    held = _layers_in_weights(files)
    if wanted is not None and held and wanted != held:
        raise ModelError(
            f"{path} asks for {wanted:,} layers, but the weights hold {held:,}",
            "config.json and the weights do not belong together",
        )
    return family


def _layers_in_weights(files: ModelFiles) -> int:
    """One more than the greatest layer number among the names of the tensors; 0 without any."""
    found = 0
    for shard in weight_files(files.path):
        path = files.path / shard
        try:
            with safe_open(path, framework="pt") as tensors:
                names = list(tensors.keys())
        except Exception as error:  # a damaged header raises several kinds
            raise ModelError(f"{path} cannot be read: {_reason(error)}", BROKEN_FILES) from error
        numbers = (re.search(r"\.(\d+)\.", f".{name}") for name in names)
        found = max([found, *(int(number[1]) + 1 for number in numbers if number)])
    return found


def _reason(error: Exception) -> str:
    """An exception's words on one line; its kind too, where they are too few to understand."""
    words = " ".join(str(error).split())[:400]
    return words if " " in words else f"{type(error).__name__} {words}".strip()


def load_weights(
    files: ModelFiles,
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
) -> tuple[Any, list[str]]:
    """The causal language model, in `dtype` or quantized, on `device`.

    Beside it the names of linears that could not be quantized.

    Raises:
        ModelError: the files are damaged, or a tensor is missing, misshapen or unexpected.
    """
    options: dict[str, Any] = {}
    unfit: list[str] = []
    try:
        with warnings.catch_warnings(), _no_progress_bar():
            warnings.simplefilter("ignore")  # transformers warns of its own deprecations
            config = AutoConfig.from_pretrained(files.path, trust_remote_code=False)
            if quantization is not None:
                settings, unfit = quantization_config(config, quantization, dtype, device)
                options = {"quantization_config": settings}
            if quantization is not None or hasattr(config, "quantization_config"):
                options["device_map"] = {"": device}  # quantized weights are made in their place
            model, report = AutoModelForCausalLM.from_pretrained(
                files.path,
                config=config,
                dtype=dtype,
                attn_implementation=family.attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are reported, and refused below by name
                output_loading_info=True,
                **options,
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise  # not the files' fault
    except Exception as error:  # transformers raises every kind for a broken checkpoint
        raise ModelError(
            f"{files.name} cannot be loaded: {_reason(error)}", BROKEN_FILES
        ) from error
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
                f"{files.name} {problem} tensors: {', '.join(names[:3])}{more}",
                "config.json and the weights do not belong together, or are incomplete",
            )
    return (model if "device_map" in options else model.to(device)), unfit


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


def load_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer, tried once.

    Raises:
        ModelError: its files are missing or damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.path, trust_remote_code=False, local_files_only=True
        )
        tokenizer("A hostile setting may only fail once the tokenizer is used.")
    except Exception as error:  # as above
        raise ModelError(
            f"the tokenizer of {files.name} cannot be loaded: {_reason(error)}", BROKEN_FILES
        ) from error
    return tokenizer
