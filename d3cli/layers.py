"""Finds a model's decoder layers and gates them, layer by layer and sublayer by sublayer.

The Hugging Face model stays as it is: each decoder layer keeps its place in the stack, and a gate
before its `forward` decides whether it runs on every position, on a prefix of them, or not at all.
Swapping the stack for a shorter list would be simpler, but several families index
``config.layer_types`` by position in the stack. Knows nothing of schedules: it is told which units
run how far.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d3cli.errors import ModelError
from d3cli.units import LayerBytes, WeightBytes


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps the parts of its decoder, and the attention kernel it is proven with.

    Attributes:
        models: what people call its models, for the documentation.
        decoder: the module that turns ids into final hidden states, from the base model; "" is the
            base model itself.
        stack: the list of its layers, from the decoder.
        attn, mlp: the two sublayers, from a layer. Without an MLP module of its own, a layer can
            only be dropped whole.
        attention: transformers' name of the attention implementation.
    """

    models: str
    decoder: str = ""
    stack: str = "layers"
    attn: str = "self_attn"
    mlp: str | None = "mlp"
    attention: str = "sdpa"

    @property
    def has_sublayers(self) -> bool:
        return self.mlp is not None


# The allow-list. A model type stands here once tests/test_families.py proves it.
FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama 2, 3, 3.1, 3.2, 3.3; TinyLlama, SmolLM2, the built-in model"),
    "mistral": Family("Mistral 7B, Mistral Nemo, Mistral Small (text)"),
    "mixtral": Family("Mixtral 8x7B, 8x22B"),
    "qwen2": Family("Qwen 2, Qwen 2.5, QwQ"),
    "qwen3": Family("Qwen 3, dense"),
    "qwen3_moe": Family("Qwen 3, mixture of experts"),
    # Gemma 2 caps its attention scores, which SDPA cannot.
    "gemma2": Family("Gemma 2", attention="eager"),
    "gemma3_text": Family("Gemma 3 270M and 1B (text)"),
    "phi": Family("Phi-1, Phi-1.5, Phi-2"),
    "phi3": Family("Phi-3, Phi-3.5, Phi-4 (text)"),
    "granite": Family("Granite 3, dense"),
    "olmo": Family("OLMo 1"),
    "olmo2": Family("OLMo 2"),
    "cohere": Family("Command R, Aya"),
    "glm4": Family("GLM-4 0414"),
    "stablelm": Family("StableLM 2, StableLM 3B"),
    "smollm3": Family("SmolLM3"),
    "starcoder2": Family("StarCoder2"),
    "gpt_bigcode": Family("StarCoder 1, SantaCoder", stack="h", attn="attn"),
    "gpt_neox": Family("Pythia, GPT-NeoX", attn="attention"),
    "gpt2": Family("GPT-2", stack="h", attn="attn"),
    # OPT's layers hold their two linears themselves: no MLP module to gate.
    "opt": Family("OPT", decoder="decoder", mlp=None),
}


_HYBRID = "some of its layers keep a recurrent state, which every token must update"
_RECURRENT = "it is recurrent: every layer must read every token"
_SHARED = "its later layers read the keys and values of earlier ones"
_ENCODER = "it is an encoder-decoder, and D³ is about decoder-only models"
_WRAPPER = "it is a multimodal wrapper; d3 reads text-only checkpoints"

# Stacks that people have and that cannot skip layers, and why.
CANNOT_SKIP: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("jamba", "bamba", "zamba", "zamba2", "falcon_h1", "granitemoehybrid", "lfm2"),
            *("nemotron_h", "qwen3_next", "qwen3_5_text", "recurrent_gemma", "minimax"),
        ),
        _HYBRID,
    ),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"), _RECURRENT),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _SHARED),
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "t5gemma"), _ENCODER),
    **dict.fromkeys(
        (
            *("gemma3", "llava", "llava_next", "mllama", "mistral3", "pixtral", "llama4"),
            *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "phi4_multimodal", "idefics3"),
            *("paligemma", "smolvlm", "internvl"),
        ),
        _WRAPPER,
    ),
}


def find_family(model_type: str) -> Family:
    """The family of a config's `model_type`.

    Raises:
        ModelError: this stack cannot skip layers, or no test proves that it can.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type in CANNOT_SKIP:
        reason = f"cannot skip layers: {CANNOT_SKIP[model_type]}"
    else:
        reason = "are not supported: skipping their layers has not been proven exact"
    raise ModelError(
        f'models of the type "{model_type}" {reason}',
        f"supported types: {', '.join(sorted(FAMILIES))}",
    )


class _Switch:
    """How far one unit runs: None for every position, else the first `limit` of them."""

    __slots__ = ("limit",)

    def __init__(self) -> None:
        self.limit: int | None = None


class LayerGate:
    """Decides, for each unit of a decoder stack, on which positions it runs.

    Args:
        model: a causal language model, already in eval mode. Its decoder layers' `forward`s are
            wrapped for as long as it lives.
        family: where its parts are.
    """

    def __init__(self, model: Any, family: Family) -> None:
        self.family = family
        self.decoder: nn.Module = model.base_model.get_submodule(family.decoder)
        self.layers: nn.ModuleList = self.decoder.get_submodule(family.stack)
        self._switches: dict[str, _Switch] = {}
        for index, layer in enumerate(self.layers):
            self._install(str(index), layer, _skip_layer)
            if family.mlp is not None:
                self._install(f"{index}.attn", layer.get_submodule(family.attn), _skip_attention)
                self._install(f"{index}.mlp", layer.get_submodule(family.mlp), _skip_mlp)

    def _install(self, name: str, module: nn.Module, pad: "_Pad") -> None:
        switch = self._switches[name] = _Switch()
        module.forward = _gated(module.forward, switch, pad)

    @contextmanager
    def limit(self, lengths: Mapping[str, int]) -> Iterator[None]:
        """Runs each named unit on its first `lengths[name]` positions only, inside the block.

        A unit that is not named runs on all positions; 0 drops it. A dropped layer returns its
        input, a dropped sublayer contributes zero to the residual stream.
        """
        for name, length in lengths.items():
            self._switches[name].limit = length
        try:
            yield
        finally:
            for name in lengths:
                self._switches[name].limit = None


# Rebuilds a module's full output from its input and what the prefix gave (None: nothing ran).
_Pad = Callable[[Tensor, Any], Any]


def _skip_layer(hidden: Tensor, output: Tensor | None) -> Tensor:
    if output is None:
        return hidden
    return torch.cat([output, hidden[:, output.shape[1] :]], dim=1)


def _skip_mlp(hidden: Tensor, output: Tensor | None) -> Tensor:
    if output is None:
        return torch.zeros_like(hidden)
    return nn.functional.pad(output, (0, 0, 0, hidden.shape[1] - output.shape[1]))


def _skip_attention(
    hidden: Tensor, output: tuple[Tensor, Any] | None
) -> tuple[Tensor, Tensor | None]:
    return _skip_mlp(hidden, None if output is None else output[0]), None


def _gated(forward: Callable[..., Any], switch: _Switch, pad: _Pad) -> Callable[..., Any]:
    """`forward` behind a switch; positions beyond the limit get what `pad` gives them."""
    signature = inspect.signature(forward)

    def gated_forward(*args: Any, **kwargs: Any) -> Any:
        limit = switch.limit
        if limit is None:
            return forward(*args, **kwargs)
        # By signature: GPT-2 hands its mask and cache over by position.
        arguments = signature.bind(*args, **kwargs).arguments
        extra = arguments.pop("kwargs", {})
        first = next(iter(arguments))
        hidden: Tensor = arguments[first]  # [B, S, H]
        if limit == 0:
            return pad(hidden, None)
        if limit >= hidden.shape[1]:
            return forward(*args, **kwargs)
        # GPT-2 takes views of its input, so the prefix must be contiguous.
        prefix = {first: hidden[:, :limit].contiguous()} | {
            name: _first_positions(name, value, limit, hidden.shape[1])
            for name, value in (arguments | extra).items()
            if name != first
        }
        return pad(hidden, forward(**prefix))

    return gated_forward


def _first_positions(name: str, value: Any, limit: int, length: int) -> Any:
    """The part of a layer's argument that belongs to the first `limit` of `length` positions."""
    if name == "position_ids" and value is not None:  # [B, S]
        return value[:, :limit]
    if name == "position_embeddings" and value is not None:  # (cos, sin), each [B, S, D]
        return tuple(part[:, :limit] for part in value)
    if name == "attention_mask" and value is not None:  # [B, 1, S, KV]
        return value[:, :, :limit, : value.shape[-1] - (length - limit)]
    return value


def measure_bytes(model: Any, gate: LayerGate) -> WeightBytes:
    """Bytes of weights that one decode step reads, as stored.

    An embedding table is not read, one row of it is; a tied table is read as the LM head. Of a
    mixture of experts, the experts that a token is routed to are read.
    """
    experts_per_token = getattr(model.config, "num_experts_per_tok", None)

    def layer_bytes(layer: nn.Module) -> LayerBytes:
        whole = _bytes(layer, experts_per_token)
        attn = _bytes(layer.get_submodule(gate.family.attn), experts_per_token)
        if gate.family.mlp is None:
            return LayerBytes(attn, whole - attn)
        mlp = _bytes(layer.get_submodule(gate.family.mlp), experts_per_token)
        return LayerBytes(attn, mlp, whole - attn - mlp)

    in_layers = {id(parameter) for parameter in gate.layers.parameters()}
    fixed = {
        id(parameter): parameter.nbytes
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if id(parameter) not in in_layers
    }
    return WeightBytes(tuple(map(layer_bytes, gate.layers)), sum(fixed.values()))


def _bytes(module: nn.Module, experts_per_token: int | None) -> int:
    """Bytes that one token reads; experts are stored as one tensor, ``[experts, ...]``."""
    total = 0
    for name, parameter in module.named_parameters():
        share = 1.0
        if experts_per_token is not None and ".experts." in f".{name}":
            share = experts_per_token / parameter.shape[0]
        total += round(parameter.nbytes * share)
    return total
