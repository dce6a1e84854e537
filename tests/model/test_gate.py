"""The gate, the byte counts and the allow-list."""

import threading

import pytest
import torch

from d3cli.base.errors import ModelError, ScheduleError, UsageError
from d3cli.depth.families import CANNOT_SKIP, FAMILIES, UNLISTED, find_family
from d3cli.depth.units import LayerBytes
from d3cli.model.wrap import wrap_model
from tests.families import CONFIGS, LAYERS, random_ids, sublayers, tiny


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
