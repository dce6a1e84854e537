"""How many bytes of weights a decode step reads, in the form in which they are stored."""

from typing import Any

from torch import nn

from d3cli.depth.units import LayerBytes, WeightBytes
from d3cli.kernels.bnb_linear import stored_bytes
from d3cli.kernels.nested_linear import nested_linears
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
        attention = layer.get_submodule(gate.family.attn)
        attn = _bytes(attention, experts_per_token)
        if gate.family.mlp is None:
            return LayerBytes(attn, whole - attn)
        computes = layer.get_submodule(gate.family.mlp)
        mlp = _bytes(computes, experts_per_token)
        return LayerBytes(attn, mlp, whole - attn - mlp, _low(attention), _low(computes))

    in_layers = {id(parameter) for parameter in gate.layers.parameters()}
    fixed = {
        id(parameter): stored_bytes(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if id(parameter) not in in_layers
    }
    layers = tuple(map(layer_bytes, gate.layers))
    number = _weights(gate.layers) if gate.low_planes else 0
    return WeightBytes(layers, sum(fixed.values()), number)


def _low(sublayer: nn.Module) -> int:
    """Bytes of the low planes of a sublayer's weights."""
    return sum(linear.low_bytes for linear in nested_linears(sublayer))


def _weights(layers: nn.Module) -> int:
    """The number of weights in layers whose linears are nested."""
    nested = nested_linears(layers)
    planes = {id(held) for linear in nested for held in linear.parameters()}
    others = [held.numel() for held in layers.parameters() if id(held) not in planes]
    return sum(linear.out_features * linear.in_features for linear in nested) + sum(others)


def _bytes(module: nn.Module, experts_per_token: int | None) -> int:
    """Bytes that one token reads. All experts are one tensor, ``[experts, ...]``."""
    total = 0
    for name, parameter in module.named_parameters():
        share = 1.0
        if experts_per_token is not None and ".experts." in f".{name}":
            share = experts_per_token / parameter.shape[0]
        total += round(stored_bytes(parameter) * share)
    return total
