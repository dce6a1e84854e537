"""One pass of a decoder: over a few tokens of one sequence, or over one token of each of several.

A pass knows where the tokens stand, and which keys and values each of them attends to. Everything
else in a decoder treats its tokens alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from d3cli.kernels.grouped_attention import attend_few, attend_one
from d3cli.model.kv_cache import KVCache

# The most tokens of one pass: a verification has no more, and a prefill is for larger kernels.
MOST_TOKENS = 16

# cos and signed sin of S positions, each ``[S, 1, rotary_dim]``.
Angles = tuple[Tensor, Tensor]


class Shared(Protocol):
    """What all layers share in one pass over S tokens.

    Attributes:
        angles: the rotary angles of the tokens' positions, by their names.
    """

    @property
    def angles(self) -> Mapping[str, Angles]: ...

    def attend(
        self,
        index: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        """Attention of S tokens in one layer, whose keys and values it writes.

        Args:
            index: the layer.
            queries: ``[S, heads, D]``.
            keys, values: ``[S, kv_heads, D]``.
            scale, softcap: see `attend_one`.

        Returns:
            ``[S, heads D]``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over S tokens of one sequence.

    Attributes:
        cache: the KV cache.
        angles: the rotary angles of the tokens' positions, by their names.
        tokens: S.
    """

    cache: KVCache
    angles: Mapping[str, Angles]
    tokens: int = 1
    _masks: dict[int | None, Tensor] = field(default_factory=dict, init=False, repr=False)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What to add to the scores of S tokens and the T positions held for them, ``[S, T]``.

        Args:
            window: positions that a token attends to, its own included; None for all before it.
        """
        if window not in self._masks:
            first = self.cache.position
            start = 0 if window is None else max(0, first - window + 1)
            ahead = torch.arange(start, first + self.tokens) - torch.arange(
                first, first + self.tokens
            ).unsqueeze(1)  # of a held position before a token's own: negative
            hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
            self._masks[window] = mask
        return self._masks[window]

    def attend(
        self,
        index: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        """As `Shared.attend`."""
        held = self.cache.update_few(keys, values, index)
        if self.tokens == 1:
            return attend_one(queries, *held, scale, softcap)
        mask = self.mask(self.cache.layers[index].window, queries.dtype)
        return attend_few(queries, *held, mask, scale, softcap)


@dataclass(frozen=True, slots=True)
class RowsPass:
    """A pass over one token of each of S sequences, which may be at different positions.

    Attributes:
        caches: the sequences' KV caches.
        angles: the rotary angles of the tokens' positions, by their names.
    """

    caches: Sequence[KVCache]
    angles: Mapping[str, Angles]
    _parts: dict[tuple[int, ...], "RowsPass"] = field(default_factory=dict, init=False, repr=False)

    def of(self, rows: Sequence[int]) -> "RowsPass":
        """The part of the pass that some of its rows are."""
        key = tuple(rows)
        if key not in self._parts:
            angles = {name: (cos[rows], sin[rows]) for name, (cos, sin) in self.angles.items()}
            self._parts[key] = RowsPass([self.caches[row] for row in rows], angles)
        return self._parts[key]

    def attend(
        self,
        index: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        """As `Shared.attend`; each token attends to its own sequence alone."""
        found = []
        for row, cache in enumerate(self.caches):
            held = cache.update_few(keys[row : row + 1], values[row : row + 1], index)
            found.append(attend_one(queries[row : row + 1], *held, scale, softcap))
        return torch.cat(found)
