"""Fills decoder blocks from the modules of a transformers model.

A family differs from others in where its layers keep their norms, how sublayers join, and in the
order of queries, keys and values. `layouts` says so as data; all else is found in the modules.
Blocks hold the modules' own weights and call the modules of their linears, so nothing is copied.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d3cli.depth.families import Family
from d3cli.kernels.joint_linear import JointLinear, joint_of
from d3cli.kernels.nested_linear import NestedLinear, nested_linears
from d3cli.model.decoder_block import (
    Attention,
    Block,
    RMSNorm,
    States,
    signed,
)
from d3cli.model.decoder_pass import Angles
from d3cli.model.decoder_stack import DecoderStack
from d3cli.model.layouts import LAYOUTS, Layout

# Makes a function of a linear: with all of its planes, or with the high one alone.
Planes = Callable[[Any], States]


# Classes of RMSNorm: whether the weight multiplies after the cast, and whether it is less one.
_RMS_NORMS = {
    **dict.fromkeys(
        (
            *("LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"),
            *("Qwen3MoeRMSNorm", "Phi3RMSNorm", "GraniteRMSNorm", "Glm4RMSNorm", "SmolLM3RMSNorm"),
        ),
        (True, False),
    ),
    "Olmo2RMSNorm": (False, False),
    "Gemma2RMSNorm": (False, True),
    "Gemma3RMSNorm": (False, True),
}

# The type of a layer where a config does not say it.
PLAIN = "full_attention"

# Names of the parts, the same in all families.
_OUTPUTS = ("o_proj", "dense", "c_proj", "out_proj")
_JOINT = ("qkv_proj", "query_key_value", "c_attn")
_ACTIVATIONS = ("act_fn", "activation_fn", "act")
_UP = ("fc1", "c_fc", "dense_h_to_4h")
_DOWN = ("fc2", "c_proj", "dense_4h_to_h")
_LAST_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


def fill_blocks(causal_lm: Any, decoder: Any, family: Family) -> DecoderStack | None:
    """The decoder of a model as blocks; None if transformers' layers must run it."""
    config = causal_lm.config
    layout = LAYOUTS.get(config.model_type)
    if layout is None or not _is_plain(causal_lm) or _looks_ahead(config):
        return None
    layers = decoder.get_submodule(family.stack)
    kinds: Sequence[str | None] = [None] * len(layers)
    if hasattr(decoder, "rotary_emb"):
        kinds = getattr(config, "layer_types", None) or [PLAIN] * len(layers)
    blocks = tuple(
        _block(layer, family, layout, config, kind)
        for layer, kind in zip(layers, kinds, strict=True)
    )
    return DecoderStack(
        embed=_embedding(causal_lm, decoder),
        angles=_angles(decoder, layout, config),
        blocks=blocks,
        norm=_norm(_find(decoder, _LAST_NORMS)),
        hooks=tuple(
            hooks
            for module in decoder.modules()
            for hooks in (module._forward_pre_hooks, module._forward_hooks)
        ),
    )


def _is_plain(causal_lm: Any) -> bool:
    """Whether all weights are on the CPU, undivided, and accelerate does not move any."""
    if getattr(causal_lm, "_tp_size", None):  # split over ranks
        return False
    return all(p.device.type == "cpu" for p in causal_lm.parameters()) and not any(
        hasattr(module, "_hf_hook") for module in causal_lm.modules()
    )


def _looks_ahead(config: Any) -> bool:
    return bool(getattr(config, "use_bidirectional_attention", False))


def _find(module: Any, names: tuple[str, ...]) -> Any:
    """The first child with one of these names."""
    return next(getattr(module, name) for name in names if hasattr(module, name))


def _block(layer: Any, family: Family, layout: Layout, config: Any, kind: str | None) -> Block:
    def norm(name: str | None) -> States | None:
        module = None if name is None else getattr(layer, name)
        return None if module is None else _norm(module)

    assert family.mlp is not None
    attention, mlp = layer.get_submodule(family.attn), layer.get_submodule(family.mlp)
    whole, high = _attention(attention, layout, config, kind), None
    if nested_linears(attention):
        high = _attention(attention, layout, config, kind, _high)
    return Block(
        attention=whole,
        mlp=_mlp(mlp),
        high_attention=high,
        high_mlp=_mlp(mlp, _high) if nested_linears(mlp) else None,
        before_attention=norm(layout.before_attention),
        after_attention=norm(layout.after_attention),
        before_mlp=norm(layout.before_mlp),
        after_mlp=norm(layout.after_mlp),
        parallel=layout.parallel or getattr(config, "use_parallel_residual", False),
        sum_first=layout.sum_first,
        multiplier=getattr(layer, "residual_multiplier", 1.0),
    )


def _norm(module: Any) -> States:
    """A norm; a module of an unknown class computes its own."""
    found: States = module
    if type(module).__name__ in _RMS_NORMS:
        cast_first, plus_one = _RMS_NORMS[type(module).__name__]
        eps = module.eps if plus_one else module.variance_epsilon
        found = RMSNorm(module.weight, eps, cast_first, plus_one)
    elif type(module) is nn.LayerNorm:
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        found = lambda states: torch.layer_norm(states, shape, weight, bias, eps)  # noqa: E731
    return found


def _whole(linear: Any) -> States:
    """A linear, or several as one, as a function."""
    whole: States = linear
    return whole


def _high(linear: Any) -> States:
    """As `_whole`, without the low plane."""
    nested = linear.product if isinstance(linear, JointLinear) else linear
    return nested.without_low if isinstance(nested, NestedLinear) else _whole(linear)


def _attention(
    module: Any, layout: Layout, config: Any, kind: str | None, planes: Planes = _whole
) -> Attention:
    heads = config.num_attention_heads
    sharing = getattr(module, "num_key_value_groups", 1)  # GPT-2 and GPT-NeoX share nothing
    kv_heads = heads // sharing
    size = getattr(module, "head_dim", None) or module.head_size
    return Attention(
        index=module.layer_idx,
        project=_projection(module, layout, (heads, kv_heads, size), config, planes),
        output=planes(_find(module, _OUTPUTS)),
        heads=heads,
        kv_heads=kv_heads,
        scale=module.scaling,
        norm=_query_key_norm(module, layout, (heads, kv_heads, size)),
        angles=kind if getattr(module, "use_rope", True) else None,
        in_pairs=layout.in_pairs,
        softcap=getattr(module, "attn_logit_softcapping", None),
    )


def _projection(
    module: Any, layout: Layout, shape: tuple[int, int, int], config: Any, planes: Planes
) -> States:
    """``[S, H]`` to queries, keys and values ``[S, heads + 2 kv_heads, D]``."""
    heads, _, size = shape
    if hasattr(module, "q_proj"):
        together = _together((module.q_proj, module.k_proj, module.v_proj), planes)
        clip: float | None = getattr(config, "clip_qkv", None)
        if clip is None:
            return lambda states: together(states).view(len(states), -1, size)
        return lambda states: together(states).view(len(states), -1, size).clamp_(-clip, clip)
    joint = planes(_find(module, _JOINT))
    if layout.by_head or getattr(module, "multi_query", True) is False:
        return lambda states: joint(states).view(-1, heads, 3, size).transpose(1, 2).flatten(1, 2)
    return lambda states: joint(states).view(len(states), -1, size)


def _together(linears: Sequence[Any], planes: Planes) -> States:
    """The outputs of several linears, one after the other."""
    joint = joint_of(linears)
    if joint is not None:
        return planes(joint)
    each = [planes(linear) for linear in linears]
    return lambda states: torch.cat([linear(states) for linear in each], dim=-1)


def _query_key_norm(module: Any, layout: Layout, shape: tuple[int, int, int]) -> States | None:
    """Normalizes queries and keys ``[S, heads + kv_heads, D]``; None if the family does not."""
    heads, kv_heads, size = shape
    found = dict(module.named_children())
    names = [name for name in ("norm", "layernorm") if f"q_{name}" in found]
    if not names:
        return None
    query_norm, key_norm = _norm(found[f"q_{names[0]}"]), _norm(found[f"k_{names[0]}"])
    query_shape, key_shape = layout.norm_shape(heads, size), layout.norm_shape(kv_heads, size)

    def normalize(states: Tensor) -> Tensor:
        queries = query_norm(states[:, :heads].reshape(query_shape)).view(-1, heads, size)
        keys = key_norm(states[:, heads:].reshape(key_shape)).view(-1, kv_heads, size)
        return torch.cat((queries, keys), dim=1)

    return normalize


def _mlp(module: Any, planes: Planes = _whole) -> States:
    """``[S, H]`` to ``[S, H]``. A mixture of experts computes its own."""
    if hasattr(module, "experts"):
        return lambda states: module(states[None])[0]
    act = _activation(_find(module, _ACTIVATIONS))
    joint = getattr(module, "gate_up_proj", None)
    if hasattr(module, "gate_proj"):
        joint = joint_of((module.gate_proj, module.up_proj))
    if joint is not None:
        both, last = planes(joint), planes(module.down_proj)
        sizes = [module.down_proj.in_features] * 2

        def gated(states: Tensor) -> Tensor:
            gate, up = both(states).split_with_sizes(sizes, 1)
            return last(act(gate) * up)

        return gated
    if hasattr(module, "gate_proj"):
        gate, up = planes(module.gate_proj), planes(module.up_proj)
        down = planes(module.down_proj)
        return lambda states: down(act(gate(states)) * up(states))
    up, down = planes(_find(module, _UP)), planes(_find(module, _DOWN))
    return lambda states: down(act(up(states)))


def _activation(module: Any) -> States:
    """The function that a module applies, where calling that saves the module's own time."""
    is_silu = type(module).__name__ in ("SiLU", "SiLUActivation")
    return nn.functional.silu if is_silu else module


def _embedding(causal_lm: Any, decoder: Any) -> Callable[[Tensor, Tensor], Tensor]:
    tokens = causal_lm.get_input_embeddings()
    if hasattr(decoder, "wpe"):  # GPT's learned positions
        return lambda token, position: (tokens(token) + decoder.wpe(position))[0]
    multiplier = getattr(decoder, "embedding_multiplier", 1)
    if multiplier != 1:
        return lambda token, _: tokens(token)[0] * multiplier
    return lambda token, _: tokens(token)[0]


def _angles(
    decoder: Any, layout: Layout, config: Any
) -> Callable[[Tensor, Tensor], Mapping[str, Angles]]:
    """The rotary angles of a step, by the type of layer."""
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None:
        return lambda _, __: {}
    kinds = sorted(set(getattr(config, "layer_types", None) or [PLAIN]))
    by_kind = hasattr(rotary, "layer_types")

    def at(states: Tensor, position: Tensor) -> Mapping[str, Angles]:
        found = {}
        for kind in kinds:
            cos, sin = (part[0, :, None] for part in rotary(states, position, *([kind] * by_kind)))
            if layout.doubled:
                half = cos.shape[-1] // 2
                cos, sin = (part[..., :half].repeat_interleave(2, dim=-1) for part in (cos, sin))
            if layout.in_float:
                cos, sin = cos.float(), sin.float()
            found[kind] = cos, signed(sin, in_pairs=layout.in_pairs)
            if not by_kind:
                return dict.fromkeys(kinds, found[kind])
        return found

    return at
