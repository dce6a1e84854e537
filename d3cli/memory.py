"""How much memory a model will need, foretold from its headers, and how much there is.

Nothing is loaded for it, so it can be asked before a download. Knows nothing of depth: the prompt
is always read at full depth, so every layer is needed.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig

from d3cli.control_groups import own_groups
from d3cli.errors import ModelError, NotEnoughMemoryError
from d3cli.packing import can_pack
from d3cli.quantization import (
    Quantization,
    check_quantization,
    fits_cpu_kernel,
    is_converted,
    is_quantized_while_loading,
    quantized_bytes,
)
from d3cli.quantized_head import MULTIPLE, HeadChoice
from d3cli.weights import BROKEN_FILES, REOPEN_AFTER, Description, TensorInfo, one_line

# Positions that one pass of a prefill reads. It bounds the attention mask and the activations of a
# long prompt, and is large enough to keep GEMMs busy.
PREFILL_CHUNK = 512
# Positions allocated beyond the prompt where nobody said how long the reply may be.
DEFAULT_RESERVE = 1024

# Measured by scripts/measure_memory.py, from the import of torch on: the code of a model's family,
# bitsandbytes', and a tokenizer's tables for each token of its vocabulary.
PROGRAM, BITSANDBYTES, TOKENIZER_ENTRY = 108 << 20, 64 << 20, 1 << 10
# bitsandbytes' temporaries, in sizes of the largest weight, and the most they were seen to take.
TEMPORARIES, MOST_TEMPORARIES = 8, 32 << 20
# The LM head's least share of what a full-depth step reads, to be worth 8 bits.
LEAST_HEAD = 1 / 16


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that loading and running a model adds to the process (on a GPU: takes there).

    Attributes:
        positions: tokens that the KV cache is for.
        weights: all weights, in the dtype or quantization asked for.
        kv_cache: keys and values of every layer, for all positions asked for.
        workspace: activations of the largest pass, or what converting a weight takes for a moment.
        program: code, and the tokenizer.
    """

    positions: int
    weights: int
    kv_cache: int
    workspace: int
    program: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.workspace + self.program


def predict_memory(
    model: Description,
    *,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    quantize_head: HeadChoice | None = None,
    device: torch.device | None = None,
    prompt_tokens: int = 0,
    reply_tokens: int = DEFAULT_RESERVE,
) -> MemoryNeed:
    """What a model will need. Within 10% of the measured peak: ``docs/memory.md``.

    Args:
        prompt_tokens, reply_tokens: the KV cache is for both, as far as the context goes.

    Raises:
        ModelError: the config makes no sense.
    """
    device = device or torch.device("cpu")
    config = _parse_config(model)
    try:
        positions = min(prompt_tokens + reply_tokens, int(config.max_position_embeddings))
        in_8_bits = _in_8_bits(config, model, dtype, quantization, quantize_head, device)
        return MemoryNeed(
            positions=positions,
            weights=sum(
                _bytes_in_memory(tensor, model, dtype, quantization, device)
                for tensor in model.tensors
            )
            + _head_copy(config, model, dtype, device, in_8_bits=in_8_bits),
            kv_cache=positions * kv_bytes_per_position(config, dtype),
            workspace=max(
                _activations(config, dtype, min(max(prompt_tokens, 1), PREFILL_CHUNK), positions),
                _conversion(config, model, dtype, quantization, device, in_8_bits=in_8_bits),
            ),
            program=PROGRAM
            + TOKENIZER_ENTRY * int(config.vocab_size)
            + (0 if quantization is None else BITSANDBYTES),
        )
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(
            f"the config.json of {model.name} makes no sense: {one_line(error)}", BROKEN_FILES
        ) from error


def _parse_config(model: Description) -> Any:
    """The config with transformers' own names for its fields, and its defaults."""
    try:
        return AutoConfig.for_model(**model.config)
    except MemoryError:
        raise
    except Exception as error:  # transformers raises every kind for odd values
        raise ModelError(
            f"the config.json of {model.name} cannot be read: {one_line(error)}", BROKEN_FILES
        ) from error


def _bytes_in_memory(
    tensor: TensorInfo,
    model: Description,
    dtype: torch.dtype,
    quantization: Quantization | None,
    device: torch.device,
) -> int:
    if tensor.name.endswith("lm_head.weight") and model.config.get("tie_word_embeddings"):
        return 0  # a second copy of the embeddings, which is not read
    if quantization is not None and is_quantized_while_loading(tensor, quantization):
        on_cpu_in_4_bits = device.type == "cpu" and quantization == "bnb-4bit"
        if fits_cpu_kernel(*tensor.shape) or not on_cpu_in_4_bits:
            return quantized_bytes(tensor.numel, quantization)
    return tensor.numel * dtype.itemsize if tensor.is_float else tensor.nbytes


def is_head_quantized(
    model: Description,
    dtype: torch.dtype,
    quantization: Quantization | None,
    choice: HeadChoice | None,
    device: torch.device,
) -> bool:
    """Whether loading puts the LM head into 8 bits: on a CPU, and where it is worth it.

    Args:
        choice: None is "auto" where the layers are in 4 bits, else "off".

    Raises:
        ModelError: the config makes no sense.
    """
    return _in_8_bits(_parse_config(model), model, dtype, quantization, choice, device)


def _in_8_bits(
    config: Any,
    model: Description,
    dtype: torch.dtype,
    quantization: Quantization | None,
    choice: HeadChoice | None,
    device: torch.device,
) -> bool:
    stored = model.config.get("quantization_config")
    in_4_bits = quantization == "bnb-4bit" or (
        isinstance(stored, dict) and bool(stored.get("load_in_4bit"))
    )
    wanted = in_4_bits if choice is None else choice == "auto"
    # In float16 the kernel's scales would be too coarse for small rows.
    if not wanted or device.type != "cpu" or dtype == torch.float16:
        return False
    if _head_inputs(config) % MULTIPLE:
        return False
    layers = sum(
        _bytes_in_memory(tensor, model, dtype, quantization, device)
        for tensor in model.tensors
        if tensor.layer is not None
    )
    head = _head_bytes(config, dtype)
    return head >= LEAST_HEAD * (head + layers)


def _head_copy(
    config: Any,
    model: Description,
    dtype: torch.dtype,
    device: torch.device,
    *,
    in_8_bits: bool,
) -> int:
    """Bytes of embeddings and LM head beyond those of their tensors in the file; or fewer.

    A head of another form is a copy; embeddings that stay mapped take no memory, since single rows
    of them are read.
    """
    as_it_is = _head_bytes(config, dtype)
    if in_8_bits:
        taken = as_it_is // dtype.itemsize + config.vocab_size * dtype.itemsize
    else:
        taken = as_it_is
    table = (config.vocab_size, _head_inputs(config))
    tables = [tensor for tensor in model.tensors if tensor.shape == table]
    mapped = device.type == "cpu" and not any(is_converted(t, dtype, None) for t in tables)
    if config.tie_word_embeddings:
        if not in_8_bits and not can_pack(dtype, device):
            return 0  # embeddings and head are one
        return int(taken - as_it_is if mapped else taken)
    return int(taken - as_it_is - (as_it_is if mapped and len(tables) == 2 else 0))


def _head_inputs(config: Any) -> int:
    """The LM head's; OPT may project its states to fewer."""
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def _head_bytes(config: Any, dtype: torch.dtype) -> int:
    return int(config.vocab_size * _head_inputs(config) * dtype.itemsize)


def _conversion(
    config: Any,
    model: Description,
    dtype: torch.dtype,
    quantization: Quantization | None,
    device: torch.device,
    *,
    in_8_bits: bool,
) -> int:
    """Bytes that are held twice while weights are converted or packed, one after the other."""
    packs = can_pack(dtype, device)
    converted = [tensor for tensor in model.tensors if is_converted(tensor, dtype, quantization)]
    in_layers = [
        tensor.nbytes
        for tensor in model.tensors
        if tensor.layer is not None and (packs or tensor in converted)
    ]
    # Before the LM head gets another form, so its copy is not there yet.
    outside = max((tensor.nbytes for tensor in converted if tensor.layer is None), default=0)
    outside -= max(0, _head_copy(config, model, dtype, device, in_8_bits=in_8_bits))
    largest = max(in_layers, default=0)
    if quantization is not None:
        # The LM head is packed when the layers are there already.
        head = _head_bytes(config, dtype) if packs and not in_8_bits else 0
        return max(head, outside, min(TEMPORARIES * largest, MOST_TEMPORARIES))
    return max(largest, outside) + REOPEN_AFTER if converted or largest else 0


def kv_bytes_per_position(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token, in all layers."""
    heads = config.num_attention_heads
    kv_heads = heads
    if hasattr(type(config)(), "num_key_value_heads"):  # else the family would not read it
        kv_heads = config.num_key_value_heads or heads
    if getattr(config, "multi_query", False):
        kv_heads = 1
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * dtype.itemsize)


def _activations(config: Any, dtype: torch.dtype, tokens: int, positions: int) -> int:
    """Bytes of one layer's activations in a pass over `tokens`, or of the logits after it."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    experts = getattr(config, "num_experts_per_tok", None) or 1
    item = dtype.itemsize
    mlp = 3 * tokens * inner * experts * item
    attention = (4 * tokens * hidden + 2 * positions * heads * head_dim) * item
    mask = 2 * tokens * positions * item
    residual = 3 * tokens * hidden * item
    logits = 4 * config.vocab_size * 4
    return int(max(mlp, attention) + mask + residual + logits)


def available_memory(device: torch.device) -> int:
    """Bytes that can be had now: of the GPU, or of the machine and any control group's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([int(psutil.virtual_memory().available), *_left_in_control_groups()])


def _left_in_control_groups() -> list[int]:
    """What the limits on this process (of a container, say) leave; none outside Linux.

    Pages of files count against a limit, but the kernel takes them back.
    """
    second = ("memory.max", "memory.current", "inactive_file")
    first = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    left = []
    for version, directory in own_groups("memory"):
        left += _left(directory, *(second if version == 2 else first))
    return left


def _left(directory: Path, limit: str, usage: str, reclaimable: str) -> list[int]:
    try:
        allowed = (directory / limit).read_text().strip()
        used = int((directory / usage).read_text())
        statistics = (directory / "memory.stat").read_text()
    except (OSError, ValueError):
        return []
    if not allowed.isdecimal():  # "max"
        return []
    found = re.search(rf"^{reclaimable} (\d+)$", statistics, re.MULTILINE)
    return [max(0, int(allowed) - used + int(found[1] if found else 0))]


def check_memory(
    model: Description,
    *,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    quantize_head: HeadChoice | None = None,
    device: torch.device | None = None,
    prompt_tokens: int = 0,
    reply_tokens: int = DEFAULT_RESERVE,
) -> MemoryNeed:
    """Refuses what will not fit, with what would.

    Raises:
        NotEnoughMemoryError: with both numbers.
    """
    device = device or torch.device("cpu")
    settings: dict[str, Any] = {
        "dtype": dtype,
        "quantization": quantization,
        "quantize_head": quantize_head,
        "device": device,
        "prompt_tokens": prompt_tokens,
        "reply_tokens": reply_tokens,
    }
    need, available = predict_memory(model, **settings), available_memory(device)
    if need.total <= available:
        return need
    ways = []
    if quantization is None:
        half = predict_memory(model, **(settings | {"dtype": torch.bfloat16})).total
        if half <= available:
            ways.append(f"--dtype bfloat16 ({gigabytes(half)})")
        with suppress(ModelError):  # it cannot be quantized
            check_quantization(model.name, model.config, "bnb-4bit")
            small = predict_memory(model, **(settings | {"quantization": "bnb-4bit"})).total
            if small <= available:
                ways.append(f"--quantization bnb-4bit ({gigabytes(small)})")
    room = available - (need.total - need.kv_cache)
    fits = int(0.95 * room * need.positions / max(need.kv_cache, 1)) - prompt_tokens
    if 0 < fits < reply_tokens:
        ways.append(f"--max-tokens {fits}")
    place = f"on {device}" if device.type == "cuda" else "here"
    raise NotEnoughMemoryError(
        f"{model.name} needs about {gigabytes(need.total)} (weights {gigabytes(need.weights)}, KV "
        f"cache {gigabytes(need.kv_cache)}, the rest {gigabytes(need.workspace + need.program)}), "
        f"and {gigabytes(available)} are free {place}",
        f"{', or '.join([*ways, 'a smaller model'])}; --force tries all the same",
    )


def gigabytes(count: int) -> str:
    """Bytes for people, in powers of ten."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
