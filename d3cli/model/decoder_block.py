"""A decoder's layer for a few tokens, in as few operations as its mathematics needs.

A small model spends more time between its products than in them: modules, keyword arguments, masks
and casts cost as much as the weights. Here a layer is a `Block` of plain data that runs one token
of one sequence on a CPU, or a few tokens, as verifying a draft does. `DecoderStack` runs one after
the other. `block_parts` fills blocks from the modules of a transformers model, and its layers
remain the way for everything else and the oracle in tests. Casts happen in their order, so that
bfloat16 rounds alike. Knows nothing of families, files or schedules.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from d3cli.depth.units import Part, Unit
from d3cli.model.decoder_pass import Shared

# A function of the states of S tokens: a norm, a linear, an MLP.
States = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Root mean square norm (Zhang and Sennrich, arXiv 1910.07467).

    Attributes:
        weight: ``[H]``.
        cast_first: whether the normalized states are cast back before the weight multiplies them.
        plus_one: whether the weight is stored less one.
    """

    weight: Tensor
    eps: float
    cast_first: bool
    plus_one: bool

    def __call__(self, states: Tensor) -> Tensor:
        """``[..., H]`` to the same shape and dtype."""
        dtype, size = states.dtype, states.shape[-1]
        if not self.cast_first:
            states = states.float()
        # The fused LayerNorm of (x, -x): its mean is 0, and its variance is x's mean square.
        both = torch.cat((states, -states), dim=-1)
        normed = torch.layer_norm(both, (2 * size,), None, None, self.eps).narrow(-1, 0, size)
        if self.plus_one:
            return torch.addcmul(normed, normed, self.weight.float()).to(dtype)
        return (normed * self.weight).to(dtype)


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention of S tokens.

    Attributes:
        index: its layer.
        project: ``[S, H]`` to queries, keys and values, ``[S, heads + 2 kv_heads, D]``.
        output: ``[S, heads D]`` to ``[S, H]``.
        norm: of queries and keys, ``[S, heads + kv_heads, D]``.
        angles: which of the step's rotary angles turn queries and keys; None for none.
        in_pairs: whether neighbours turn together, instead of the two halves.
        softcap: the bound of the scores.
    """

    index: int
    project: States
    output: States
    heads: int
    kv_heads: int
    scale: float
    norm: States | None = None
    angles: str | None = None
    in_pairs: bool = False
    softcap: float | None = None

    def __call__(self, states: Tensor, shared: Shared) -> Tensor:
        """``[S, H]`` to ``[S, H]``; writes the tokens' keys and values."""
        heads, kv_heads = self.heads, self.kv_heads
        projected = self.project(states)
        turned = projected.narrow(1, 0, heads + kv_heads)
        values = projected.narrow(1, heads + kv_heads, kv_heads)
        if self.norm is not None:
            turned = self.norm(turned)
        if self.angles is not None:
            turned = turn(turned, *shared.angles[self.angles], in_pairs=self.in_pairs)
        queries, keys = turned.narrow(1, 0, heads), turned.narrow(1, heads, kv_heads)
        return self.output(
            shared.attend(self.index, queries, keys, values, self.scale, self.softcap)
        )


def turn(heads: Tensor, cos: Tensor, sin: Tensor, *, in_pairs: bool) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of ``[S, N, D]``.

    Args:
        cos, sin: ``[S, 1, R]``, where R of the D dimensions turn. `sin` bears the sign of the
            dimension that it is multiplied by, as `signed` returns it.
    """
    size = cos.shape[-1]
    turning = heads if size == heads.shape[-1] else heads.narrow(2, 0, size)
    if in_pairs:
        partners = turning.reshape(*turning.shape[:2], size // 2, 2).flip(3).flatten(2)
    else:
        partners = turning.roll(size // 2, 2)
    turned = (turning * cos).add_(partners * sin).to(heads.dtype)
    if turning is heads:
        return turned
    return torch.cat((turned, heads.narrow(2, size, heads.shape[2] - size)), dim=2)


def signed(sin: Tensor, *, in_pairs: bool) -> Tensor:
    """`sin` ``[S, 1, R]``, negative where a dimension receives minus its partner."""
    sign = torch.ones_like(sin)
    sign[..., slice(0, None, 2) if in_pairs else slice(0, sin.shape[-1] // 2)] = -1
    return sin * sign


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer, or what is left of it.

    Attributes:
        attention, mlp: the sublayers; None where it is dropped.
        high_attention, high_mlp: the same without the low planes of their weights; None if these
            are not nested.
        before_attention, after_attention, before_mlp, after_mlp: the norms of the sublayers'
            inputs and outputs.
        parallel: whether both sublayers read the layer's input. Without `before_mlp`, they then
            share the norm.
        sum_first: whether a parallel layer adds its sublayers before it adds its input.
        multiplier: of what a sublayer adds.
    """

    attention: Attention | None
    mlp: States | None
    high_attention: Attention | None = None
    high_mlp: States | None = None
    before_attention: States | None = None
    after_attention: States | None = None
    before_mlp: States | None = None
    after_mlp: States | None = None
    parallel: bool = False
    sum_first: bool = False
    multiplier: float = 1.0

    def without(self, dropped: Collection[Unit]) -> "Block":
        """The layer without some of its sublayers and low planes."""
        attention, mlp = self.attention, self.mlp
        kinds = {(unit.part, unit.low) for unit in dropped}
        if (Part.ATTN, True) in kinds:
            attention = self.high_attention
            assert attention is not None, "the attention has no low plane"
        if (Part.MLP, True) in kinds:
            mlp = self.high_mlp
            assert mlp is not None, "the MLP has no low plane"
        return replace(
            self,
            attention=None if (Part.ATTN, False) in kinds else attention,
            mlp=None if (Part.MLP, False) in kinds else mlp,
        )

    def __call__(self, states: Tensor, shared: Shared) -> Tensor:
        """``[S, H]`` to ``[S, H]``."""
        if self.parallel:
            return self._parallel(states, shared)
        if self.attention is not None:
            inner = states if self.before_attention is None else self.before_attention(states)
            inner = self.attention(inner, shared)
            states = self._add(states, inner, self.after_attention)
        if self.mlp is not None:
            inner = states if self.before_mlp is None else self.before_mlp(states)
            states = self._add(states, self.mlp(inner), self.after_mlp)
        return states

    def _add(self, states: Tensor, inner: Tensor, norm: States | None) -> Tensor:
        if norm is not None:
            inner = norm(inner)
        if self.multiplier != 1:
            inner = inner * self.multiplier
        return states + inner

    def _parallel(self, states: Tensor, shared: Shared) -> Tensor:
        assert self.before_attention is not None
        is_read = self.attention is not None or self.before_mlp is None
        normed = self.before_attention(states) if is_read else states
        attended = None if self.attention is None else self.attention(normed, shared)
        if self.mlp is None:
            return states if attended is None else states + attended
        computed = self.mlp(normed if self.before_mlp is None else self.before_mlp(states))
        if attended is None:
            return states + computed
        if self.sum_first:
            return attended + computed + states
        return states + attended + computed
