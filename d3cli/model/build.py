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
    AutoConfig,
    AutoTokenizer,
)
from transformers.utils import logging as hf_logging

from d3cli.base.errors import ModelError, is_panic, one_line
from d3cli.base.progress import ByteProgress
from d3cli.depth.families import (
    Family,
)
from d3cli.files.json_files import BROKEN_FILES
from d3cli.files.names import ModelFiles
from d3cli.files.safetensors import lazy_state_dict, read_again
from d3cli.kernels.bnb_linear import (
    Quantization,
    import_bitsandbytes,
    is_converted,
    pack_for_cpu,
    quantization_config,
)
from d3cli.kernels.int8_linear import quantize_head
from d3cli.kernels.packed_linear import can_pack, pack_linears
from d3cli.model.check import OLD_BUFFERS, _model_class, _without_choices

MMAP_THRESHOLD = -3  # glibc's number of that parameter of mallopt


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
