"""How much memory a model will need, predicted from its headers, and how much is free.

Nothing is loaded, so this also works before a download. Knows nothing of depth: the prompt is
always read at full depth, so every layer is needed.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from d3cli.base.amounts import readable_size
from d3cli.base.errors import ModelError, NotEnoughMemoryError, Setting, Words
from d3cli.base.free_memory import free_memory
from d3cli.files.safetensors import Description
from d3cli.kernels.int8_linear import HeadChoice
from d3cli.kernels.plan import Form, KernelPlan
from d3cli.kernels.quantization import OWN_KINDS, Quantization, check_quantization
from d3cli.model.config import config_errors, parse_config
from d3cli.model.context import choose_context
from d3cli.model.held_weights import HeldWeights, plan_for
from d3cli.model.kv_cache import DEFAULT_RESERVE, PREFILL_CHUNK
from d3cli.model.ranks.plan import heads_are_split
from d3cli.model.typical_text import TOKENS

# Bytes measured by scripts/measure_memory.py after importing torch: the code of a model's family,
# that of bitsandbytes, and a tokenizer's tables per token of its vocabulary.
PROGRAM, BITSANDBYTES, TOKENIZER_ENTRY = 108 << 20, 64 << 20, 1 << 10
# With a torch built for CUDA, later imports take this much more, even on a CPU.
CUDA_BUILD = 68 << 20
# The share of the free memory that further KV caches may take.
ROWS_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that loading and running a model adds to the process (on a GPU: takes there).

    Attributes:
        positions: tokens that the KV cache has room for.
        weights: all weights, in the dtype or quantization asked for.
        kv_cache: keys and values of every layer, for all positions.
        workspace: the larger of the activations of the largest pass and what converting a weight
            takes for a moment.
        code: of the model's family, which another model of it uses as well.
        tokenizer: its tables.
    """

    positions: int
    weights: int
    kv_cache: int
    workspace: int
    code: int
    tokenizer: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.workspace + self.code + self.tokenizer

    @property
    def rest(self) -> int:
        """All but the weights and the KV cache."""
        return self.total - self.weights - self.kv_cache


def predict_memory(
    model: Description,
    *,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    quantize_head: HeadChoice | None = None,
    device: torch.device | None = None,
    prompt_tokens: int = 0,
    reply_tokens: int = DEFAULT_RESERVE,
    context: int | None = None,
) -> MemoryNeed:
    """How much memory a model will need. Within 10% of the measured peak: ``docs/memory.md``.

    Args:
        prompt_tokens, reply_tokens: the KV cache is for both, up to the model's context.
        context: the context asked for; None is what the config says.

    Raises:
        ModelError: the config makes no sense.
        UsageError: the model does not hold as many tokens as `context`.
    """
    form = Form(dtype, device or torch.device("cpu"), quantization, quantize_head)
    config = parse_config(model)
    with config_errors(model):
        longest = choose_context(model.name, config, context).length
    return _predict(model, config, form, min(prompt_tokens + reply_tokens, longest), prompt_tokens)


def _predict(
    model: Description, config: Any, form: Form, positions: int, prompt_tokens: int
) -> MemoryNeed:
    plan = plan_for(model, config, form)
    return predict_for_plan(model, config, plan, positions, prompt_tokens)


def predict_for_plan(
    model: Description, config: Any, plan: KernelPlan, positions: int, prompt_tokens: int
) -> MemoryNeed:
    """As `predict_memory`, for a plan of kernels that is made already.

    Args:
        config: the model's parsed config.
        positions: tokens that the KV cache has room for.

    Raises:
        ModelError: the config makes no sense.
    """
    form = plan.form
    with config_errors(model):
        held = HeldWeights(model, config, plan)
        loading = held.while_loading
        if plan.rounds_for_inputs:  # a pass over a text goes on meanwhile
            loading += activations(config, form.dtype, TOKENS, TOKENS)
        chunk = min(max(prompt_tokens, 1), PREFILL_CHUNK)
        return MemoryNeed(
            positions=positions,
            weights=held.of_rank(form.ranks),
            kv_cache=positions
            * kv_bytes_per_position(config, form.dtype)
            // (form.ranks if heads_are_split(config) else 1),
            workspace=max(activations(config, form.dtype, chunk, positions), loading),
            code=PROGRAM
            + (CUDA_BUILD if torch.version.cuda else 0)
            + (0 if form.quantization in (None, *OWN_KINDS) else BITSANDBYTES),
            tokenizer=TOKENIZER_ENTRY * int(config.vocab_size),
        )


def kv_bytes_per_position(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    heads = config.num_attention_heads
    kv_heads = heads
    if hasattr(type(config)(), "num_key_value_heads"):  # otherwise the family ignores it
        kv_heads = config.num_key_value_heads or heads
    if getattr(config, "multi_query", False):
        kv_heads = 1
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * dtype.itemsize)


def rows_that_fit(config: Any, dtype: torch.dtype, device: torch.device, positions: int) -> int:
    """How many more KV caches of this many positions the free memory holds."""
    each = positions * kv_bytes_per_position(config, dtype)
    return int(ROWS_SHARE * available_memory(device)) // max(each, 1)


def activations(config: Any, dtype: torch.dtype, tokens: int, positions: int) -> int:
    """Bytes of one layer's activations in a pass over `tokens`, and of the logits after it."""
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
    """Bytes free now: on the GPU, or on this machine within the limits of this process."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def check_memory(
    model: Description,
    config: Any,
    form: Form,
    *,
    context: int,
    prompt_tokens: int,
    reply_tokens: int,
    beside: int = 0,
) -> None:
    """Refuses a model that does not fit, and says what would.

    Args:
        config: the model's parsed config.
        context: how many tokens the model holds.
        beside: bytes that a draft model needs as well.

    Raises:
        NotEnoughMemoryError: with the memory needed and the memory free.
    """

    def predict(form: Form) -> MemoryNeed:
        positions = min(prompt_tokens + reply_tokens, context)
        return _predict(model, config, form, positions, prompt_tokens)

    need, free = predict(form), available_memory(form.device)
    if form.device.type == "cpu":
        free //= form.ranks_here
    available = free - beside
    if need.total <= available:
        return
    ways: list[Words] = []
    if need.total <= free:
        ways.append(("no ", Setting("draft_model")))
    if form.quantization is None:
        half = predict(replace(form, dtype=torch.bfloat16)).total
        if half <= available:
            ways.append((Setting("dtype", "bfloat16"), f" ({readable_size(half)})"))
    if form.quantization is None and form.ranks == 1:
        kind: Quantization = "int4" if form.device.type == "cpu" else "bnb-4bit"
        with suppress(ModelError):  # it cannot be quantized
            check_quantization(model.name, model.config, kind)
            small = predict(replace(form, dtype=torch.bfloat16, quantization=kind)).total
            if small <= available:
                ways.append((Setting("quantization", kind), f" ({readable_size(small)})"))
    room = available - (need.total - need.kv_cache)
    fits = int(0.95 * room * need.positions / max(need.kv_cache, 1)) - prompt_tokens
    if 0 < fits < reply_tokens:
        ways.append((Setting("max_tokens", str(fits)),))
    draft = f", and its draft model {readable_size(beside)}" if beside else ""
    place = f"on {form.device}" if form.device.type == "cuda" else "here"
    if form.ranks > 1:
        place = f"{place}, for each of the {form.ranks_here} ranks here"
    raise NotEnoughMemoryError(
        f"{model.name} needs about {readable_size(need.total)} (weights "
        f"{readable_size(need.weights)}, KV cache {readable_size(need.kv_cache)}, the rest "
        f"{readable_size(need.rest)}){draft}, but only {readable_size(free)} are free {place}",
        _hint(ways),
    )


def _hint(ways: Sequence[Words]) -> Words:
    pieces: list[str | Setting] = ["use "]
    for way in ways:
        pieces += [*way, ", or "]
    return (*pieces, "a smaller model; ", Setting("force"), " loads it anyway")
