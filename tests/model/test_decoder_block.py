"""Decode steps by blocks equal those by transformers' layers, which are the oracle here."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from d3cli.depth.families import FAMILIES
from d3cli.model.decoder_block import Block
from d3cli.model.decoder_pass import MOST_TOKENS, Shared
from d3cli.model.kv_cache import KVCache
from d3cli.model.layouts import LAYOUTS
from d3cli.model.model import LoadedModel
from d3cli.model.wrap import wrap_model
from tests.families import (
    CONFIGS,
    FAMILY_NAMES,
    family,
    quick_or_slow,
    random_ids,
    random_model,
    some_families,
    tiny,
    word_tokenizer,
)

PROMPT, STEPS = 12, 6
WITH_BLOCKS = [name for name in FAMILY_NAMES if not name.startswith("opt")]
some_with_blocks = pytest.mark.parametrize("name", quick_or_slow((name,) for name in WITH_BLOCKS))
DROPPED = {
    "full depth": (),
    "layers": ("2", "5"),
    "sublayers": ("1.attn", "2", "3.mlp", "4.attn", "4.mlp"),
}
LOW = ("0.attn.lo", "1.mlp.lo", "2.attn.lo", "2.mlp.lo", "2", "3.mlp.lo", "3.mlp", "5.attn.lo")


def wrapped(name: str, dtype: torch.dtype) -> LoadedModel:
    """A model of its own, for tests that change its weights or its dtype."""
    config = CONFIGS[name]
    model = random_model(config, FAMILIES[config.model_type].attention or "sdpa").to(dtype)
    return wrap_model(model, word_tokenizer(), name=name)


def steps(
    model: LoadedModel, token_ids: Sequence[int], dropped: Collection[str], at_once: int = 1
) -> Tensor:
    """Hidden states ``[S, H]`` of tokens that are read one by one, or a few at once."""
    cache = model.new_cache()
    model.hidden_states(torch.tensor([token_ids[:PROMPT]]), cache)
    cache.commit(PROMPT, full_depth=True)
    rows = []
    limits = dict.fromkeys(dropped, 0)
    for ids in torch.tensor(token_ids[PROMPT:]).split(at_once):
        rows.append(model.hidden_states(ids[None], cache, limits=limits)[0])
        cache.commit(len(ids), full_depth=not dropped)
    return torch.cat(rows)


def cache_after(model: LoadedModel, token_ids: Sequence[int], dropped: Collection[str]) -> KVCache:
    """The KV cache after a prompt and the tokens after it, read as `steps` reads them."""
    cache = model.new_cache()
    limits: Mapping[str, int] = {}
    for ids in (token_ids[:PROMPT], *([id_] for id_ in token_ids[PROMPT:])):
        model.hidden_states(torch.tensor([ids]), cache, limits=limits)
        cache.commit(len(ids), full_depth=not limits)
        limits = dict.fromkeys(dropped, 0)
    return cache


def by_layers(model: LoadedModel) -> LoadedModel:
    return replace(model, blocks=None)


def test_every_family_but_opt_has_blocks() -> None:
    assert FAMILIES.keys() - LAYOUTS.keys() == {"opt"}
    assert LAYOUTS.keys() <= FAMILIES.keys()


@family
def test_a_step_by_blocks_equals_one_by_layers(name: str) -> None:
    model = tiny(name).gated
    assert (model.blocks is None) == name.startswith("opt")
    ids = random_ids(PROMPT + STEPS)
    for units in DROPPED.values():
        if not model.gate.family.has_sublayers and any("." in unit for unit in units):
            continue
        expected = steps(by_layers(model), ids, units)
        off = (steps(model, ids, units) - expected).abs().max()
        assert off < 1e-5 * expected.abs().max()


@some_with_blocks
def test_a_few_tokens_at_once_equal_the_same_one_by_one(name: str) -> None:
    """Past the sliding windows too, which are shorter than the reply and may be than the draft."""
    model = tiny(name).gated
    ids = random_ids(PROMPT + 2 * MOST_TOKENS + 1)
    for kind in ("full depth", "sublayers" if model.gate.family.has_sublayers else "layers"):
        expected = steps(by_layers(model), ids, DROPPED[kind])
        for at_once in (3, MOST_TOKENS):
            off = (steps(model, ids, DROPPED[kind], at_once) - expected).abs().max()
            assert off < 1e-5 * expected.abs().max()


@some_families
def test_a_token_of_each_of_several_sequences_equals_the_same_one_by_one(name: str) -> None:
    """At different positions, one of them past the sliding windows; at the same depth, or not."""
    model = tiny(name).gated
    sequences = [random_ids(PROMPT + more, seed=more) for more in (10, 2, 4, 6)]
    part = "sublayers" if model.gate.family.has_sublayers else "layers"
    full, layers, some = (DROPPED[kind] for kind in ("full depth", "layers", part))
    for dropped in ([full] * 4, [layers] * 4, [some, full, layers, some]):
        expected = torch.stack(
            [
                steps(by_layers(model), ids, units)[-2:]
                for ids, units in zip(sequences, dropped, strict=True)
            ]
        )
        caches = [
            cache_after(model, ids[:-2], units)
            for ids, units in zip(sequences, dropped, strict=True)
        ]
        for step in range(2):
            found = model.states_of_rows([ids[step - 2] for ids in sequences], caches, dropped)
            for cache, units in zip(caches, dropped, strict=True):
                cache.commit(1, full_depth=not units)
            off = (found - expected[:, step]).abs().max()
            assert off < 1e-5 * expected.abs().max()


def test_rows_that_keep_the_same_of_a_layer_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").gated
    assert model.blocks is not None
    units = [(), ("1",), ("1", "2.mlp"), ("2.mlp",)]
    caches = [cache_after(model, random_ids(PROMPT, seed=row), ()) for row in range(4)]
    ran: list[tuple[int, int, bool]] = []
    real = Block.__call__

    def noted(block: Block, states: Tensor, shared: Shared) -> Tensor:
        assert block.attention is not None
        ran.append((block.attention.index, len(states), block.mlp is not None))
        return real(block, states, shared)

    monkeypatch.setattr(Block, "__call__", noted)
    model.states_of_rows([3] * 4, caches, units)
    others = {(index, 4, True) for index in range(model.num_layers)} - {(1, 4, True), (2, 4, True)}
    assert len(ran) == len(set(ran))
    assert set(ran) == others | {(1, 2, True), (2, 2, True), (2, 2, False)}


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_a_step_without_low_planes_equals_one_by_layers(name: str) -> None:
    model = tiny(name, nested=True).gated
    ids = random_ids(PROMPT + STEPS)
    dropped = [unit for unit in LOW if model.weight_bytes.has(unit)]
    assert sum(unit.endswith(".lo") for unit in dropped) >= 3
    expected = steps(by_layers(model), ids, dropped)
    assert (steps(model, ids, dropped) - expected).abs().max() < 1e-5 * expected.abs().max()
    with_low = steps(model, ids, [unit for unit in dropped if not unit.endswith(".lo")])
    assert (with_low - expected).abs().max() > 1e-3 * expected.abs().max()


@some_with_blocks
def test_in_bfloat16_blocks_are_as_exact_as_layers(name: str) -> None:
    """Both are compared with float32, over steps that add up their rounding."""
    ids = random_ids(PROMPT + 60)
    narrow = wrapped(name, torch.bfloat16)
    wide = wrapped(name, torch.float32)
    wide.causal_lm.load_state_dict(narrow.causal_lm.state_dict())  # the rounded weights
    exact = steps(by_layers(wide), ids, ())
    ours, theirs = (
        float((steps(model, ids, ()).float() - exact).pow(2).mean().sqrt())
        for model in (narrow, by_layers(narrow))
    )
    assert ours < 1.15 * theirs


def test_a_hook_on_any_module_is_called_in_decode_steps() -> None:
    model = wrapped("llama", torch.float32)
    calls = []
    norm = model.gate.layers[2].input_layernorm
    ids = random_ids(PROMPT + 3)
    expected = steps(model, ids, ())
    hook = norm.register_forward_hook(lambda *_: calls.append(1))
    watched = steps(model, ids, ())
    hook.remove()
    assert len(calls) == 1 + 3  # the prompt, then each step
    assert torch.allclose(watched, expected, atol=1e-5)
    assert torch.equal(steps(model, ids, ()), expected)
    assert len(calls) == 1 + 3


def test_weights_that_change_in_place_are_read_as_they_are() -> None:
    model = wrapped("gemma2", torch.float32)
    ids = random_ids(PROMPT + 2)
    before = steps(model, ids, ())
    with torch.no_grad():
        for parameter in model.gate.layers.parameters():
            parameter.mul_(0.9)
    after = steps(model, ids, ())
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(after, steps(by_layers(model), ids, ()), atol=1e-5)


def test_a_model_that_looks_ahead_is_run_by_its_layers() -> None:
    config = CONFIGS["gemma3"].__class__(
        **{**CONFIGS["gemma3"].to_dict(), "use_bidirectional_attention": True}
    )
    model = wrap_model(random_model(config, "sdpa"), word_tokenizer())
    assert model.blocks is None
