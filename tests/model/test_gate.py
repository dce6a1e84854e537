"""The gate, the byte counts and the allow-list."""

import threading
from dataclasses import replace

import pytest
import torch

from d3cli.base.errors import ModelError, ScheduleError, UsageError
from d3cli.depth.families import CANNOT_SKIP, FAMILIES, UNLISTED, find_family
from d3cli.depth.units import LayerBytes
from d3cli.model.wrap import wrap_model
from tests.families import CONFIGS, LAYERS, planes, random_ids, sublayers, tiny


def test_every_supported_type_is_proven() -> None:
    assert {config.model_type for config in CONFIGS.values()} == set(FAMILIES)


def test_no_type_is_both_supported_and_refused() -> None:
    assert not FAMILIES.keys() & CANNOT_SKIP.keys()


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("jamba", "recurrent state"),
        ("mamba2", "recurrent"),
        ("gemma3n_text", "keys and values of earlier"),
        ("t5", "encoder-decoder"),
        ("llava", "multimodal"),
    ],
)
def test_a_refused_type_comes_with_a_reason(model_type: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        find_family(model_type)


def test_an_untested_type_is_unlisted() -> None:
    assert find_family("nobody_knows") is UNLISTED


def test_limits_hold_for_one_pass_only() -> None:
    model = tiny("llama").gated
    ids = torch.tensor([random_ids(9)])
    before = model.hidden_states(ids)
    assert not torch.equal(model.hidden_states(ids, limits={"3": 0, "4.mlp": 2}), before)
    assert torch.equal(model.hidden_states(ids), before)
    with pytest.raises(TypeError):  # a pass that fails in the middle
        model.hidden_states(ids, limits={"3": 0, "4.mlp": "two"})  # type: ignore[dict-item]
    assert torch.equal(model.hidden_states(ids), before)


@pytest.mark.parametrize("by_blocks", [True, False])
def test_low_planes_are_off_for_one_pass_only(by_blocks: bool) -> None:
    model = tiny("llama", nested=True).gated
    model = model if by_blocks else replace(model, blocks=None)
    ids, cache = torch.tensor([random_ids(9)]), model.new_cache()
    before = model.hidden_states(ids)
    model.hidden_states(ids, cache)
    cache.commit(9, full_depth=True)
    steps = [
        model.hidden_states(ids[:, :1], cache, limits=limits)
        for limits in ({}, {"3.attn.lo": 0, "4.mlp.lo": 0}, {}, {"4.mlp.lo": 0})
    ]
    assert torch.equal(steps[0], steps[2])
    assert len({float(step.sum()) for step in steps}) == 3
    limits = {"3.attn.lo": 4, "4.mlp.lo": 0}
    assert not torch.equal(model.hidden_states(ids, limits=limits), before)
    assert torch.equal(model.hidden_states(ids), before)
    with pytest.raises(TypeError):  # a pass that fails in the middle
        model.hidden_states(ids, limits={**limits, "5": "two"})  # type: ignore[dict-item]
    assert torch.equal(model.hidden_states(ids), before)
    assert all(
        linear.low_rows is None for plane in model.gate.low_planes.values() for linear in plane
    )


def test_a_plane_that_runs_on_more_positions_than_there_are_runs_on_all() -> None:
    model = tiny("llama", nested=True).gated
    ids = torch.tensor([random_ids(9)])
    assert torch.equal(model.hidden_states(ids, limits={"3.attn.lo": 99}), model.hidden_states(ids))


def test_a_step_without_low_planes_sets_nothing_on_the_linears() -> None:
    """The decoder block has the high planes at hand, so thousands of tokens cost nothing."""
    model = tiny("llama", nested=True).gated
    blocks = model.blocks
    assert blocks is not None
    dropped = frozenset({"3.attn.lo", "3.mlp", "5"})
    left = blocks.blocks_without(dropped)
    assert [index for index, block in enumerate(left) if block is None] == [5]
    assert left is blocks.blocks_without(frozenset(dropped))
    assert left[3].attention is blocks.blocks[3].high_attention
    assert left[3].mlp is None
    assert left[4] is blocks.blocks[4]


def test_low_planes_of_other_weights_are_refused() -> None:
    nested = tiny("llama", nested=True).gated
    schedule = planes(nested)
    nested.check_schedule(schedule)
    with pytest.raises(ScheduleError, match=r"low plane 0\.mlp\.lo, and llama.* has none") as error:
        tiny("llama").gated.check_schedule(schedule)
    assert "nested" in str(error.value.hint)


def test_a_second_thread_is_refused_during_a_pass() -> None:
    model = tiny("llama").gated
    ids = torch.tensor([random_ids(5)])
    expected = model.hidden_states(ids)
    inside, go_on = threading.Event(), threading.Event()
    found = []

    def wait(*_: object) -> None:
        inside.set()
        assert go_on.wait(60)

    hook = model.gate.layers[1].register_forward_hook(wait)
    other = threading.Thread(target=lambda: found.append(model.hidden_states(ids)))
    other.start()
    try:
        assert inside.wait(60)
        for use in (lambda: model.hidden_states(ids), lambda: model.logits(expected)):
            with pytest.raises(UsageError, match="in use by another thread"):
                use()
    finally:
        hook.remove()
        go_on.set()
        other.join()
    assert torch.equal(found[0], expected)
    assert torch.equal(model.hidden_states(ids), expected)


def test_dropping_a_layer_is_dropping_both_its_sublayers() -> None:
    model = tiny("qwen3").gated
    ids = torch.tensor([random_ids(9)])
    whole = model.hidden_states(ids, limits={"3": 0})
    assert torch.equal(model.hidden_states(ids, limits={"3.attn": 0, "3.mlp": 0}), whole)


def test_a_model_cannot_be_gated_twice() -> None:
    with pytest.raises(ModelError, match="already has a gate"):
        wrap_model(tiny("llama").gated.causal_lm, None)


def test_layers_without_an_mlp_module_are_dropped_whole_or_not_at_all() -> None:
    schedule = sublayers(tiny("llama").gated)
    with pytest.raises(ScheduleError, match="no separate sublayers"):
        tiny("opt").gated.check_schedule(schedule)


class TestBytes:
    def test_llama(self) -> None:
        weights = tiny("llama").gated.weight_bytes
        attn = 4 * (2 * 32 * 32 + 2 * 32 * 16)
        assert weights.layers == (LayerBytes(attn, 4 * 3 * 32 * 80, 4 * 2 * 32),) * LAYERS
        assert weights.fixed == 4 * (131 * 32 + 32)

    def test_low_planes_and_weights_of_nested_linears(self) -> None:
        plain, nested = (tiny("llama", nested=nested).gated for nested in (False, True))
        assert (plain.weight_bytes.is_nested, plain.weight_bytes.layer_weights) == (False, 0)
        weights = nested.weight_bytes
        assert weights.layer_weights * 4 == sum(one.total for one in plain.weight_bytes.layers)
        attn, gate_and_up, down = 2 * 32 * 32 + 2 * 32 * 16, 2 * 32 * 80, 32 * 80
        plane = 0.5 + 2 * 4 / 32  # bytes of a weight: its code, and two floats for 32 weights
        assert weights.layers[0] == LayerBytes(
            attn=round(2 * plane * attn),
            mlp=round(2 * plane * gate_and_up) + 4 * down,  # 80 inputs do not fit the kernel
            other=4 * 2 * 32,
            attn_low=round(plane * attn),
            mlp_low=round(plane * gate_and_up),
        )

    def test_a_tied_table_is_read_as_the_head(self) -> None:
        assert tiny("llama-tied").gated.weight_bytes.fixed == 4 * (131 * 32 + 32)

    def test_a_step_reads_only_active_experts(self) -> None:
        one_expert = 4 * 3 * 32 * 80
        router = 4 * 4 * 32
        mixture = tiny("mixtral").gated.weight_bytes
        assert mixture.layers[0].mlp == 2 * one_expert + router
        mixed = tiny("qwen3_moe").gated.weight_bytes
        assert mixed.layers[0].mlp == 2 * 4 * 3 * 32 * 24 + router
        assert mixed.layers[3].mlp == one_expert  # a dense layer among them


def test_longrope_ends_where_its_second_table_begins() -> None:
    assert tiny("phi3-longrope").gated.context_length == 128
    assert tiny("phi3").gated.context_length == 256
