"""The demo model's training forward: a Llama whose flex layers may run on a prefix.

Takes transformers' own parameters and computes what its Llama computes. It exists because the
plain attention below is about twice as fast as the fused one for such small heads on a CPU, and
because each flex layer runs on its own number of leading positions, the way D³ skips layers.
It computes in the data type of the rotary table and of the attention bias.
"""

import random
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from demo_batches import CONTEXT, Batch
from torch import Tensor
from transformers import LlamaForCausalLM

LAYERS, HIDDEN, INTERMEDIATE, HEADS = 16, 128, 384, 2
QUERIES = 128  # that attend at once, to no position after the last of them
CORE = 4  # layers at each end that always run
DROP_ORDER = (7, 9, 5, 10, 8, 6, 11, 4)  # the order that training leans towards


def draw_prefixes(rng: random.Random, full_depth_share: float, length: int) -> dict[int, int]:
    """Layer -> number of leading positions that it runs on; layers left out run on all.

    Noise on the order keeps it from being the only one that works. 1 to 8 layers are dropped:
    from the first position on, all at one later position, or one after another.
    """
    if rng.random() < full_depth_share:
        return {}
    noise = rng.choice((0.0, 2.0, 8.0))
    ranked = sorted(range(len(DROP_ORDER)), key=lambda rank: rank + noise * rng.random())
    dropped = [DROP_ORDER[rank] for rank in ranked[: rng.randint(1, len(DROP_ORDER))]]
    if rng.random() < 0.35:
        return dict.fromkeys(dropped, 0)
    if rng.random() < 0.5:
        return dict.fromkeys(dropped, rng.randrange(length // 2))
    bounds = sorted(rng.randrange(length) for _ in dropped)
    return dict(zip(dropped, bounds, strict=True))


class Rotary:
    """cos and sin [CONTEXT, head size] in the layout of transformers' Llama."""

    def __init__(self, head_size: int, dtype: torch.dtype, base: float = 10_000.0) -> None:
        inverse = base ** -(torch.arange(0, head_size, 2).float() / head_size)
        angles = torch.outer(torch.arange(CONTEXT).float(), inverse).repeat(1, 2)
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        length = x.shape[-2]
        return x * self.cos[:length] + torch.cat((-second, first), -1) * self.sin[:length]


def attention_bias(ids: Tensor, bos: int, within_dialogue: bool, dtype: torch.dtype) -> Tensor:
    """0 where a position may look, else -inf: [S, S], or [B, 1, S, S] within each dialogue."""
    length = ids.shape[1]
    bias = torch.full((length, length), float("-inf")).triu(1).to(dtype)
    if not within_dialogue:
        return bias
    dialogue = (ids == bos).cumsum(1)
    apart = dialogue[:, None, :, None] != dialogue[:, None, None, :]
    return bias.expand(len(ids), 1, length, length).masked_fill(apart, float("-inf"))


def run_layer(layer: Any, x: Tensor, rotary: Rotary, bias: Tensor) -> Tensor:
    """One decoder layer, x [B, S, H]; plain attention beats the fused one at this size."""
    batch, length, hidden = x.shape

    def linear(module: Any, value: Tensor) -> Tensor:
        return F.linear(value, module.weight.to(x.dtype))

    def norm(module: Any, value: Tensor) -> Tensor:
        return F.rms_norm(value, (hidden,), module.weight.to(x.dtype), 1e-5)

    def heads(value: Tensor) -> Tensor:
        return value.view(batch, length, HEADS, -1).transpose(1, 2)

    attention, mlp = layer.self_attn, layer.mlp
    h = norm(layer.input_layernorm, x)
    q = rotary(heads(linear(attention.q_proj, h))) * (hidden // HEADS) ** -0.5
    k, v = rotary(heads(linear(attention.k_proj, h))), heads(linear(attention.v_proj, h))
    parts = []
    for first in range(0, length, QUERIES):
        last = min(first + QUERIES, length)
        scores = q[..., first:last, :] @ k[..., :last, :].transpose(-1, -2)
        scores = scores + bias[..., first:last, :last]
        parts.append(scores.softmax(-1) @ v[..., :last, :])
    mixed = torch.cat(parts, -2).transpose(1, 2).reshape(batch, length, hidden)
    x = x + linear(attention.o_proj, mixed)
    h = norm(layer.post_attention_layernorm, x)
    return x + linear(mlp.down_proj, F.silu(linear(mlp.gate_proj, h)) * linear(mlp.up_proj, h))


def loss_of(
    model: LlamaForCausalLM, batch: Batch, prefixes: dict[int, int], rotary: Rotary, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each reply token and those tokens, each flex layer on its own prefix."""
    embedding = model.model.embed_tokens.weight
    x = F.embedding(batch.ids, embedding).to(bias.dtype)
    for number, layer in enumerate(model.model.layers):
        prefix = prefixes.get(number, x.shape[1])
        if prefix == x.shape[1]:
            x = run_layer(layer, x, rotary, bias)
        elif prefix:
            x = torch.cat((run_layer(layer, x[:, :prefix], rotary, bias), x[:, prefix:]), 1)
    scored = batch.labels >= 0
    x = F.rms_norm(x[scored], (HIDDEN,), model.model.norm.weight.to(x.dtype), 1e-5)
    logits = F.linear(x, embedding.to(x.dtype))
    labels = batch.labels[scored]
    return F.cross_entropy(logits.float(), labels, reduction="none"), labels
