"""The KV cache: preallocated, with a length per layer, and it never evicts.

A transformers `Cache` that works with dropped layers. All layers share one *position*, the number
of tokens in the sequence. A layer whose attention was dropped stops growing, and the cache is then
*ragged*. Knows nothing of schedules or tokens: the caller says when a pass is complete and whether
it ran at full depth.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from d3cli.base.errors import ModelError
from d3cli.depth.families import OTHER_TYPE

# Positions that one pass of a prefill reads. It bounds the attention mask and the activations of a
# long prompt, and is large enough to keep the matrix products efficient.
PREFILL_CHUNK = 512
# Positions reserved for a reply whose length nobody has limited.
DEFAULT_RESERVE = 1024


class KVLayer(CacheLayerMixin):
    """One layer's keys and values, each ``[B, kv_heads, capacity, head_dim]``.

    Args:
        window: the number of positions that a query attends to, its own included; None for all.
            Older positions stay in the buffer, so that `KVCache.crop` can always go back.
    """

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.window = window
        self.is_sliding = window is not None
        self.length = 0

    def window_start(self, position: int) -> int:
        """The first position that a query at `position` attends to."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    @property
    def allocated(self) -> int:
        """Positions that the buffers have room for."""
        return 0 if self.keys is None else self.keys.shape[2]

    def write(self, keys: Tensor, values: Tensor, position: int, capacity: int) -> None:
        """Writes new keys and values, ``[B, kv_heads, S, head_dim]``, at `position`."""
        end = position + keys.shape[2]
        if end > self.allocated:
            # What was reserved was predicted by someone: no more than that.
            room = capacity if end <= capacity else max(end, 2 * self.allocated)
            self._grow(keys, values, room)
        assert self.keys is not None and self.values is not None
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        self.length = end

    def _grow(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        # Both are complete before either is replaced, since memory may run out in between.
        new_keys = keys.new_empty((*keys.shape[:2], capacity, keys.shape[3]))
        new_values = values.new_empty((*values.shape[:2], capacity, values.shape[3]))
        if self.keys is not None and self.values is not None:
            new_keys[:, :, : self.length] = self.keys[:, :, : self.length]
            new_values[:, :, : self.length] = self.values[:, :, : self.length]
        self.keys, self.values = new_keys, new_values
        self.is_initialized = True

    # transformers' interface of a layer. KVCache answers for all layers at once instead.
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("update the KVCache, not one of its layers")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        raise NotImplementedError("ask the KVCache, not one of its layers")

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class KVCache(Cache):
    """Keys and values of one sequence (or of a batch of equal lengths), for every layer.

    Args:
        windows: each layer's sliding window; None for a layer that attends to all positions.

    Attributes:
        position: the number of tokens in the sequence, and so the next token's position.
        full_length: how many tokens from the start were computed at full depth. Up to here, every
            layer holds exactly what the full model would hold.
    """

    layers: list[KVLayer]

    def __init__(self, windows: list[int | None]) -> None:
        super().__init__(layers=[KVLayer(window) for window in windows])
        self.position = 0
        self.full_length = 0
        self._capacity = 0

    @classmethod
    def for_config(cls, config: PretrainedConfig) -> "KVCache":
        """An empty cache for a model; transformers decides which layers have a sliding window.

        Raises:
            ModelError: a layer keeps another kind of state (recurrent, chunked, shared).
        """
        try:
            kinds = DynamicCache(config=config).layers
        except AttributeError as error:  # layer_types may name a kind that the family lacks
            raise ModelError(
                f"the config.json of this model contradicts itself: {error}", OTHER_TYPE
            ) from error
        if any(type(kind) not in (DynamicLayer, DynamicSlidingWindowLayer) for kind in kinds):
            raise ModelError(
                "this model keeps other states than keys and values, which d3 cannot hold",
                OTHER_TYPE,
            )
        return cls([getattr(kind, "sliding_window", None) for kind in kinds])

    def reserve(self, positions: int) -> None:
        """Makes the next write that needs room allocate `positions`. Beyond them, room doubles."""
        self._capacity = positions

    @property
    def room(self) -> int:
        """How many positions there is room for: reserved, or allocated in all layers."""
        return max(self._capacity, min(layer.allocated for layer in self.layers))

    @property
    def capacity(self) -> int:
        """The positions reserved."""
        return self._capacity

    def follow(self, position: int, lengths: Sequence[int], capacity: int) -> None:
        """Takes over the state of a cache in which the same passes were written, and then cropped.

        Args:
            position, capacity: the other cache's.
            lengths: of each of its layers.
        """
        self.position, self._capacity = position, capacity
        for layer, length in zip(self.layers, lengths, strict=True):
            layer.length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores ``[B, kv_heads, S, head_dim]`` at the shared position.

        Returns the keys and values to attend to: all of them, or those in the window.
        """
        layer = self.layers[layer_idx]
        if layer.length < self.position:
            raise AssertionError(
                f"layer {layer_idx} holds {layer.length} of {self.position} positions: a dropped "
                "unit ran again without a repair"
            )
        layer.write(key_states, value_states, self.position, self._capacity)
        assert layer.keys is not None and layer.values is not None
        visible = slice(layer.window_start(self.position), layer.length)
        return layer.keys[:, :, visible], layer.values[:, :, visible]

    def update_few(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """As `update`, for a few tokens of one sequence, ``[S, kv_heads, head_dim]``.

        Where the buffers have room, this takes fewer operations.
        """
        layer, position = self.layers[layer_idx], self.position
        end = position + len(keys)
        keys, values = keys.transpose(0, 1), values.transpose(0, 1)
        held_keys, held_values = layer.keys, layer.values
        if (
            held_keys is None
            or held_values is None
            or end > held_keys.shape[2]
            or layer.length < position
        ):
            return self.update(keys[None], values[None], layer_idx)
        held_keys.narrow(2, position, end - position).copy_(keys)
        held_values.narrow(2, position, end - position).copy_(values)
        layer.length = end
        start = layer.window_start(position)
        count = layer.length - start
        return held_keys.narrow(2, start, count), held_values.narrow(2, start, count)

    def commit(self, tokens: int, *, full_depth: bool) -> None:
        """Ends a pass over `tokens` new positions. An interrupted pass is not committed."""
        was_exact = self.is_exact
        self.position += tokens  # first, so that full_length never exceeds it
        if full_depth and was_exact:
            self.full_length = self.position

    @property
    def is_exact(self) -> bool:
        """Whether all positions were computed at full depth, so that nothing is approximate."""
        return self.full_length == self.position

    @property
    def complete_length(self) -> int:
        """How many tokens from the start every layer holds, exact or approximate."""
        return min(self.position, *(layer.length for layer in self.layers))

    @property
    def is_ragged(self) -> bool:
        """Whether a layer holds fewer positions than the sequence has."""
        return self.complete_length < self.position

    def crop(self, length: int) -> None:
        """Removes everything from position `length` on, in every layer.

        Unlike in `transformers.Cache.crop`, `length` is absolute. Cropped to `full_length`, a
        ragged cache is no longer ragged.
        """
        # In this order, an interruption leaves no more than layers that are too long.
        self.full_length = min(self.full_length, length)
        self.position = min(self.position, length)
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def keys_and_values(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """All that a layer holds, not only its window: ``[B, kv_heads, length, head_dim]`` each."""
        layer = self.layers[layer_idx]
        assert layer.keys is not None and layer.values is not None
        return layer.keys[:, :, : layer.length], layer.values[:, :, : layer.length]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(
            layer.keys.nbytes + layer.values.nbytes
            for layer in self.layers
            if layer.keys is not None and layer.values is not None
        )

    # transformers asks these while it builds masks and positions. The shared position answers.
    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.position

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.position

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """``(kv_length, kv_offset)`` of what `update` will return for this layer."""
        offset = self.layers[layer_idx].window_start(self.position)
        return self.position + query_length - offset, offset

    def reset(self) -> None:
        self.crop(0)
