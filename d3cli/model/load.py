"""From a model's name to a `LoadedModel`: finds the files, refuses what will not do, loads.

Knows nothing of replies or terminals.
"""

import os
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack

import torch

from d3cli.base.errors import Setting, UsageError, Words
from d3cli.base.progress import ByteProgress, OnProgress
from d3cli.base.settings import BUILTIN
from d3cli.depth.calibration_record import ModelKey
from d3cli.depth.families import Family
from d3cli.files.checksums import verify
from d3cli.files.fingerprint import fingerprint
from d3cli.files.json_files import read_json
from d3cli.files.names import ModelFiles, find_model
from d3cli.files.safetensors import Description, describe_directory
from d3cli.files.vet_tokenizer import vet_files
from d3cli.kernels.bnb_linear import Quantization
from d3cli.kernels.device import Dtype, pick_device, pick_dtype
from d3cli.kernels.int8_linear import HeadChoice
from d3cli.model.build import load_tokenizer, load_weights
from d3cli.model.check import check_config, check_sizes
from d3cli.model.held_weights import HeldWeights
from d3cli.model.kv_cache import DEFAULT_RESERVE
from d3cli.model.memory import check_memory
from d3cli.model.model import LoadedModel
from d3cli.model.origin import Origin, find_calibration, shipped_schedule
from d3cli.model.wrap import wrap_model
from d3cli.text.chat_template import Renderer, own_template

MOST_THREADS = 1024  # far beyond it, torch aborts the process

# oneDNN keeps the kernels that it compiles for each shape, and torch's bridge to it keeps them once
# more: 1.6 MB for each new length of a prompt (measured on the built-in model), up to 1,024 kernels
# each. Lengths hardly come again.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KERNELS_KEPT = 128


class LoadOptions(TypedDict, total=False):
    """How to load a model, and how much of it.

    Attributes:
        dtype: "auto", the default, is bfloat16 where the processor or GPU computes in it, else
            float32.
        quantization: "bnb-4bit" or "bnb-8bit" quantizes the layers' linears while loading.
        quantize_head: "auto" puts the LM head into 8 bits, on a CPU and where it is a large part of
            what a token reads; None, the default, is "auto" with 4-bit layers, else "off".
        device: "auto", the default, takes the first GPU, else the CPU; or "cpu", "cuda", "cuda:1".
        full_depth_only: nothing will be dropped, so a decoder that no test proves may run, too.
        prompt_tokens, reply_tokens: what memory is predicted for.
        force: load it even where memory is predicted to be too short.
        verify: first compare all files with the hub's checksums, which reads them whole.
    """

    dtype: Dtype
    quantization: Quantization | None
    quantize_head: HeadChoice | None
    device: str
    full_depth_only: bool
    prompt_tokens: int
    reply_tokens: int
    force: bool
    verify: bool


def check_model(model: Description, **options: Unpack[LoadOptions]) -> Family:
    """Refuses a model that cannot be loaded like this, from its description alone.

    Raises:
        ModelError: its stack is not supported, or its config cannot be right.
        NotEnoughMemoryError: it will not fit.
        UsageError: the device is impossible here.
    """
    quantization = options.get("quantization")
    full_depth_only = options.get("full_depth_only", False)
    family = check_config(model, quantization, full_depth_only=full_depth_only)
    check_sizes(model, family)
    device = pick_device(options.get("device", "auto"))
    if not options.get("force", False):
        check_memory(
            model,
            dtype=pick_dtype(options.get("dtype", "auto"), device),
            quantization=quantization,
            quantize_head=options.get("quantize_head"),
            device=device,
            prompt_tokens=options.get("prompt_tokens", 0),
            reply_tokens=options.get("reply_tokens", DEFAULT_RESERVE),
        )
    return family


def load_model(
    name: str | ModelFiles = BUILTIN,
    *,
    threads: int | None = None,
    offline: bool = False,
    on_progress: OnProgress | None = None,
    **options: Unpack[LoadOptions],
) -> LoadedModel:
    """Loads a model from an alias, a hub id or a directory. Safetensors only, never remote code.

    Args:
        name: what to load, or files that `find_model` has found.
        threads: CPU threads for torch, in this whole process; None leaves torch's choice.
        offline: never touch the network.
        on_progress: is told which share of the weights is quantized or packed.
        options: see `LoadOptions`.

    Raises:
        UnknownModelError, DownloadError: it cannot be found or fetched.
        ModelError: its files are broken, or its stack cannot skip layers.
        NotEnoughMemoryError: it will not fit.
        UsageError: the device or thread count is impossible here.
    """
    device = pick_device(options.get("device", "auto"))
    dtype = pick_dtype(options.get("dtype", "auto"), device)
    quantization = options.get("quantization")
    if threads is not None:
        if not 1 <= threads <= MOST_THREADS:
            raise UsageError(f"--threads is {threads}", f"use 1 to {MOST_THREADS}")
        torch.set_num_threads(threads)
    for cache in KERNEL_CACHES:  # read when they are first used
        os.environ.setdefault(cache, str(KERNELS_KEPT))
    if isinstance(name, ModelFiles):
        files = name
    else:
        check = partial(check_model, **options)
        files = find_model(name, offline=offline, check=check)
    if not files.builtin:
        vet_files(files.path)
        if options.get("verify", False):
            verify(files.path, on_progress)
    description = describe_directory(files.name, files.path)
    family = check_model(description, **options)
    held = HeldWeights(description, dtype, quantization, options.get("quantize_head"), device)
    in_8_bits = family.can_skip and held.head_in_8_bits
    progress = ByteProgress(held.to_convert, on_progress)
    renderer = None
    if not files.is_known:
        renderer = Renderer()
        renderer.start()  # while the weights are read
    causal_lm, unfit = load_weights(
        files,
        family,
        dtype,
        device,
        quantization,
        head_in_8_bits=in_8_bits,
        progress=progress,
    )
    tokenizer = load_tokenizer(files)
    model = wrap_model(
        causal_lm,
        tokenizer,
        name=files.name,
        generation_settings=read_json(files.path / "generation_config.json"),
        notes=_notes(causal_lm, family, device, unfit, in_8_bits),
        full_depth_only=not family.can_skip,
        renderer=renderer or Renderer(trusted=[own_template(tokenizer)]),
    )
    if files.builtin and options.get("verify", False):
        note = "the built-in model came with d3, not from the hub: nothing to verify"
        model = replace(model, notes=(*model.notes, note))
    origin = Origin(shipped=shipped_schedule(files), builtin=files.builtin)
    if not family.can_skip:  # nothing can be dropped, so a calibration is of no interest
        return replace(model, origin=origin)
    key = ModelKey(
        model=files.identity,
        fingerprint=fingerprint(files.path),
        revision=files.revision,
        dtype=str(dtype).removeprefix("torch."),
        quantization=quantization,
    )
    calibration = find_calibration(key, model.check_schedule)
    return replace(model, origin=replace(origin, key=key, calibration=calibration))


def _notes(
    causal_lm: Any,
    family: Family,
    device: torch.device,
    unfit: list[str],
    head_in_8_bits: bool,
) -> list[Words]:
    """What a user should know of how a model was loaded."""
    notes: list[Words] = []
    if head_in_8_bits:
        notes.append(
            ("the LM head is in 8 bits; ", Setting("quantize_head", "off"), " keeps it as it is")
        )
    if unfit:
        notes.append(
            f"{len(unfit)} linears have shapes that 4-bit cannot take on a CPU and stay as they "
            f"are: {', '.join(unfit[:3])}{', …' if len(unfit) > 3 else ''}"
        )
    stored = getattr(causal_lm.config, "quantization_config", None)
    if getattr(stored, "load_in_8bit", False) and device.type == "cpu":
        notes.append("8-bit weights save memory, but on a CPU they are slower than bfloat16")
    if not family.can_skip:
        notes.append(
            f'no test proves d3 on models of the type "{causal_lm.config.model_type}": every layer '
            "runs, as in transformers"
        )
    return notes
