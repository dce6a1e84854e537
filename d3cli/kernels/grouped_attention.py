"""Attention of one token, or a few, on a CPU, in the shape that torch's kernel computes fastest.

A decode step has one query per head. torch's kernel first reorders the keys and values of each
head. Where heads share keys and values (grouped-query attention, Ainslie et al., arXiv 2305.13245),
it reorders the same ones once per head. Here the heads that share become several queries of one
head: the same product, in a sixth to a tenth of the time in bfloat16 (``docs/performance.md``).
transformers computes everything else.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

# transformers' modelling code takes a second and 100 MB to import, so functions import it.
PLAIN, GROUPED = "sdpa", "d3_grouped_sdpa"  # transformers' name and d3's

# With one query, the kernel computes bfloat16 products on its slowest path. Two equal queries avoid
# it.
QUERIES = 2


def group_queries(causal_lm: Any) -> None:
    """Replaces transformers' "sdpa" attention in a model by `grouped_attention`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if causal_lm.config._attn_implementation == PLAIN:
        AttentionInterface.register(GROUPED, grouped_attention)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        causal_lm.set_attn_implementation(GROUPED)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it; returns ``[B, S, heads, head_dim]``.

    Args:
        query: ``[B, heads, S, head_dim]``.
        key, value: ``[B, kv_heads, T, head_dim]``. If S is 1 and there is no mask, the token
            attends to all of them.
    """
    if (
        query.shape[2] > 1
        or attention_mask is not None
        or position_bias is not None
        or options.get("softcap") is not None
        or query.device.type != "cpu"
    ):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[Tensor, None] = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            position_bias=position_bias,
            **options,
        )
        return found
    output = attend_one(query[:, :, 0], key, value, scaling)
    return output.view(len(output), 1, *query.shape[1::2]), None


def attend_one(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, softcap: float | None = None
) -> Tensor:
    """Attention of one token to all given positions; returns ``[B, heads * head_dim]``.

    Args:
        query: ``[B, heads, head_dim]``.
        key, value: ``[B, kv_heads, T, head_dim]``.
        scale: of the scores; None is one over the root of `head_dim`.
        softcap: bounds the scores, as in Gemma 2.
    """
    batch, heads, size = query.shape
    kv_heads = key.shape[1]
    sharing = heads // kv_heads
    queries = query.view(batch, kv_heads, sharing, size)
    if softcap is not None:
        scores = queries @ key.transpose(2, 3) * (size**-0.5 if scale is None else scale)
        scores = torch.tanh(scores / softcap) * softcap
        shares = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        return (shares @ value).view(batch, -1)
    if sharing == 1 and query.dtype != torch.float32:
        output = scaled_dot_product_attention(
            queries.expand(-1, -1, QUERIES, -1), key, value, scale=scale
        )[:, :, 0]
    else:
        output = scaled_dot_product_attention(queries, key, value, scale=scale)
    return output.reshape(batch, -1)


def attend_few(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float | None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of S tokens of one sequence to T positions; returns ``[S, heads * head_dim]``.

    Args:
        query: ``[S, heads, head_dim]``.
        key, value: ``[1, kv_heads, T, head_dim]``.
        mask: what is added to the scores, ``[S, T]``.
        scale, softcap: see `attend_one`.
    """
    tokens, heads, size = query.shape
    kv_heads = key.shape[1]
    # The heads that share keys and values are queries of one head: [1, kv_heads, S * sharing, D].
    queries = query.view(tokens, kv_heads, -1, size).transpose(0, 1).flatten(1, 2)[None]
    mask = mask.repeat_interleave(heads // kv_heads, dim=0)
    if softcap is None:
        output = scaled_dot_product_attention(queries, key, value, mask, scale=scale)
    else:
        scores = queries @ key.transpose(2, 3) * (size**-0.5 if scale is None else scale)
        scores = torch.tanh(scores / softcap) * softcap + mask
        output = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value
    return output.view(kv_heads, tokens, -1, size).transpose(0, 1).reshape(tokens, -1)
