"""A whole decoder of blocks: over a few tokens of one sequence, or one token of each of several.

Each sequence may be at a depth of its own. Knows nothing of families, files or schedules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from d3cli.depth.units import Unit, parse_unit
from d3cli.model.decoder_block import Block, States
from d3cli.model.decoder_pass import MOST_TOKENS, Angles, Pass, RowsPass
from d3cli.model.kv_cache import KVCache

# Dropped sets that are kept: each row of a pass may have its own, and next the one after it.
MOST_SETS = 4 * MOST_TOKENS


@dataclass(frozen=True, slots=True)
class DecoderStack:
    """A whole decoder for a few tokens: embedding, blocks, last norm.

    Attributes:
        embed: tokens ``[1, S]`` and their positions ``[1, S]`` to ``[S, H]``.
        angles: states ``[1, S, H]`` and positions ``[1, S]`` to the rotary angles by their names.
        hooks: the hooks of all modules whose `forward` is not called here.
    """

    embed: Callable[[Tensor, Tensor], Tensor]
    angles: Callable[[Tensor, Tensor], Mapping[str, Angles]]
    blocks: tuple[Block, ...]
    norm: States
    hooks: tuple[Mapping[int, Any], ...] = ()
    # What is left of one layer without some of its units, and of all layers under the dropped sets
    # of late: many tokens in a row drop the same.
    _variants: dict[frozenset[Unit], Block] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _left: dict[frozenset[str], tuple[Block | None, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def is_watched(self) -> bool:
        """Whether a hook waits for a module to run, so that transformers' layers must."""
        return any(self.hooks)

    def __call__(self, token_ids: Tensor, cache: KVCache, dropped: frozenset[str]) -> Tensor:
        """Final hidden states ``[1, S, H]`` of tokens ``[1, S]``, which the cache then holds.

        Args:
            dropped: the units that do not run.
        """
        tokens = token_ids.shape[1]
        positions = torch.arange(cache.position, cache.position + tokens)[None]
        states = self.embed(token_ids, positions)
        shared = Pass(cache, self.angles(states[None], positions), tokens)
        for block in self.blocks_without(dropped) if dropped else self.blocks:
            if block is not None:
                states = block(states, shared)
        return self.norm(states)[None]

    def rows(
        self, token_ids: Tensor, caches: Sequence[KVCache], dropped: Sequence[frozenset[str]]
    ) -> Tensor:
        """Final hidden states ``[S, H]`` of one token of each of S sequences, ``[S]``.

        Each cache then holds its token.

        Args:
            dropped: for each sequence, the units that do not run.
        """
        positions = torch.tensor([[cache.position for cache in caches]])
        states = self.embed(token_ids[None], positions)
        shared = RowsPass(caches, self.angles(states[None], positions))
        for blocks in zip(*map(self.blocks_without, dropped), strict=True):
            states = run_rows(blocks, states, shared)
        return self.norm(states)

    def blocks_without(self, dropped: frozenset[str]) -> tuple[Block | None, ...]:
        """What is left of each layer; None of one that is dropped as a whole.

        Equal remains of a layer are the same object.
        """
        if dropped not in self._left:
            if len(self._left) >= MOST_SETS:
                self._left.clear()
            in_layer: dict[int, set[Unit]] = {}
            for unit in map(parse_unit, dropped):
                in_layer.setdefault(unit.layer, set()).add(unit)
            self._left[dropped] = tuple(
                self._block_without(index, frozenset(in_layer.get(index, ())))
                for index in range(len(self.blocks))
            )
        return self._left[dropped]

    def _block_without(self, index: int, units: frozenset[Unit]) -> Block | None:
        """What is left of a layer without some of its units."""
        if Unit(index) in units:
            return None
        if not units:
            return self.blocks[index]
        if units not in self._variants:
            self._variants[units] = self.blocks[index].without(units)
        return self._variants[units]


def run_rows(blocks: Sequence[Block | None], states: Tensor, shared: RowsPass) -> Tensor:
    """One layer of S rows, ``[S, H]`` to ``[S, H]``, of which each keeps what it keeps.

    Rows that keep the same run together, so that its weights are read once.

    Args:
        blocks: what is left of the layer for each row.
    """
    rows_of: dict[int, list[int]] = {}
    for row, block in enumerate(blocks):
        rows_of.setdefault(id(block), []).append(row)
    if len(rows_of) == 1:
        return states if blocks[0] is None else blocks[0](states, shared)
    found = states.clone()
    for rows in rows_of.values():
        block = blocks[rows[0]]
        if block is not None:
            found[rows] = block(states[rows], shared.of(rows))
    return found
