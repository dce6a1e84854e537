"""The KV cache: shared position, ragged layers, absolute crop, no eviction."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import JambaConfig, LlamaConfig

from d3cli.base.errors import ModelError
from d3cli.model.kv_cache import KVCache


def states(length: int, start: int = 0) -> torch.Tensor:
    """Keys ``[1, 2, length, 3]`` whose values are their positions."""
    positions = torch.arange(start, start + length, dtype=torch.float32)
    return positions[None, None, :, None].expand(1, 2, length, 3).clone()


def feed(cache: KVCache, length: int, layers: list[int], *, full_depth: bool = True) -> None:
    for layer in layers:
        keys = states(length, cache.position)
        cache.update(keys, keys, layer)
    cache.commit(length, full_depth=full_depth)


def held(cache: KVCache, layer: int) -> list[float]:
    return cache.keys_and_values(layer)[0][0, 0, :, 0].tolist()


def test_a_dropped_layer_stops_growing_while_the_position_advances() -> None:
    cache = KVCache([None, None, None])
    feed(cache, 4, [0, 1, 2])
    feed(cache, 1, [0, 2], full_depth=False)
    assert cache.position == cache.get_seq_length(1) == 5
    assert cache.full_length == 4
    assert cache.is_ragged
    assert held(cache, 1) == [0, 1, 2, 3]
    assert held(cache, 2) == [0, 1, 2, 3, 4]


def test_a_dropped_layer_that_runs_again_is_caught() -> None:
    cache = KVCache([None, None])
    feed(cache, 3, [0, 1])
    feed(cache, 1, [0], full_depth=False)
    with pytest.raises(AssertionError, match="without a repair"):
        feed(cache, 1, [0, 1])


def test_full_length_stops_at_the_first_pass_below_full_depth() -> None:
    cache = KVCache([None])
    feed(cache, 3, [0])
    feed(cache, 1, [0], full_depth=False)
    feed(cache, 1, [0], full_depth=True)
    assert (cache.full_length, cache.position) == (3, 5)


def test_crop_is_absolute_and_makes_a_ragged_cache_whole() -> None:
    cache = KVCache([None, None])
    feed(cache, 6, [0, 1])
    for _ in range(3):
        feed(cache, 1, [0], full_depth=False)
    cache.crop(cache.full_length)
    assert not cache.is_ragged
    feed(cache, 2, [0, 1])
    assert held(cache, 0) == held(cache, 1) == list(range(8))
    assert cache.full_length == 8


def test_an_interrupted_pass_leaves_no_trace() -> None:
    cache = KVCache([None, None])
    feed(cache, 3, [0, 1])
    cache.update(states(4, 3), states(4, 3), 0)  # layer 1 never ran: no commit
    assert cache.position == 3
    feed(cache, 1, [0, 1])
    assert held(cache, 0) == held(cache, 1) == [0, 1, 2, 3]


@given(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_a_sliding_layer_keeps_everything_and_shows_the_window(
    window: int, chunks: list[int]
) -> None:
    cache = KVCache([window, None])
    for chunk in chunks:
        sizes = [cache.get_mask_sizes(chunk, layer) for layer in (0, 1)]
        start = cache.position
        for layer, (kv_length, kv_offset) in enumerate(sizes):
            seen, _ = cache.update(states(chunk, start), states(chunk, start), layer)
            assert seen[0, 0, :, 0].tolist() == list(range(kv_offset, kv_offset + kv_length))
        # The first new position attends to itself and window - 1 older ones.
        assert sizes[0][1] == max(0, start - window + 1)
        assert sizes[1] == (start + chunk, 0)
        cache.commit(chunk, full_depth=True)
    assert held(cache, 0) == list(range(sum(chunks)))


def test_room_is_reserved_once_then_doubles() -> None:
    cache = KVCache([None])
    cache.reserve(10)
    feed(cache, 3, [0])
    buffer = cache.layers[0].keys
    assert buffer is not None
    assert buffer.shape[2] == 10
    feed(cache, 7, [0])
    assert cache.layers[0].keys is buffer
    feed(cache, 1, [0])
    grown = cache.layers[0].keys
    assert grown is not None
    assert grown.shape[2] == 20
    assert held(cache, 0) == list(range(11))
    cache.reserve(25)  # no more than that, since it was predicted
    feed(cache, 10, [0])
    reserved = cache.layers[0].keys
    assert reserved is not None
    assert reserved.shape[2] == 25


def test_memory_that_runs_out_while_growing_leaves_the_cache_as_it_was() -> None:
    cache = KVCache([None])
    feed(cache, 4, [0])

    class NoRoom(torch.Tensor):
        def new_empty(self, *_: object, **__: object) -> torch.Tensor:
            raise MemoryError

    with pytest.raises(MemoryError):
        cache.update(states(9, 4), states(9, 4).as_subclass(NoRoom), 0)
    assert held(cache, 0) == [0, 1, 2, 3]
    assert (cache.position, cache.full_length) == (4, 4)


def test_a_stack_with_other_states_is_refused() -> None:
    with pytest.raises(ModelError, match="other states than keys and values"):
        KVCache.for_config(JambaConfig(num_hidden_layers=8))
    assert len(KVCache.for_config(LlamaConfig(num_hidden_layers=5)).layers) == 5
