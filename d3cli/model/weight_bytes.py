"""How many bytes of weights a decode step reads, in the form in which they are stored."""

from typing import Any

from torch import nn

from d3cli.depth.units import LayerBytes, WeightBytes
from d3cli.kernels.bnb_linear import stored_bytes
from d3cli.model.gate import LayerGate


def measure_bytes(model: Any, gate: LayerGate) -> WeightBytes:
    """Bytes of weights that one decode step reads, as stored.

    A step reads only one row of an embedding table; a tied table is read as the LM head. In a
    mixture of experts, it reads the experts that the token is routed to.
    """
    experts_per_token = getattr(model.config, "num_experts_per_tok", None)

    def layer_bytes(layer: nn.Module) -> LayerBytes:
        whole = _bytes(layer, experts_per_token)
        if not gate.family.can_skip:
            return LayerBytes(0, 0, whole)
        attn = _bytes(layer.get_submodule(gate.family.attn), experts_per_token)
        if gate.family.mlp is None:
            return LayerBytes(attn, whole - attn)
        mlp = _bytes(layer.get_submodule(gate.family.mlp), experts_per_token)
        return LayerBytes(attn, mlp, whole - attn - mlp)

    in_layers = {id(parameter) for parameter in gate.layers.parameters()}
    fixed = {
        id(parameter): stored_bytes(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if id(parameter) not in in_layers
    }
    return WeightBytes(tuple(map(layer_bytes, gate.layers)), sum(fixed.values()))


def _bytes(module: nn.Module, experts_per_token: int | None) -> int:
    """Bytes that one token reads. All experts are one tensor, ``[experts, ...]``."""
    total = 0
    for name, parameter in module.named_parameters():
        share = 1.0
        if experts_per_token is not None and ".experts." in f".{name}":
            share = experts_per_token / parameter.shape[0]
        total += round(stored_bytes(parameter) * share)
    return total
