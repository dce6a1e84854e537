"""The influence of units, measured in the prefill, against a slow and obvious computation."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from d3cli.base.errors import GenerationError
from d3cli.depth.families import find_family
from d3cli.depth.units import UnitKind, unit_names
from d3cli.model.influence import InfluenceMeter
from d3cli.model.influence_table import InfluenceHistory, InfluenceTable, mean_influence
from tests.families import CONFIGS, LAYERS, family, random_ids, tiny, units_of

# The module after each sublayer whose output is added to the residual stream, where that is not
# the sublayer itself; and the families whose sublayers read the same input.
POST_NORMS = {
    **dict.fromkeys(
        ("gemma2", "gemma3_text"), ("post_attention_layernorm", "post_feedforward_layernorm")
    ),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
PARALLEL = ("phi", "cohere", "gpt_neox", "stablelm-parallel")

with_sublayers = pytest.mark.parametrize(
    "name", [name for name in CONFIGS if "sublayers" in units_of(name)]
)


def rows_of(name: str, kind: Any, ids: list[int]) -> Tensor:
    model = tiny(name).gated
    meter = InfluenceMeter(model.gate, kind)
    model.hidden_states(torch.tensor([ids]), meter=meter)
    return meter.rows()[0]


def measured(values: Tensor, kind: UnitKind) -> Tensor:
    """The values ``[S, ...]`` at the positions that are measured."""
    stride = {"layer": 4, "sublayer": 8}[kind]
    return values[[p for p in range(len(values)) if p % stride == stride - 1]]


def one_minus_cosine(before: Tensor, after: Tensor) -> Tensor:
    before, after = before.double(), after.double()
    dots = (before * after).sum(-1)
    return 1 - dots / before.square().sum(-1).sqrt() / after.square().sum(-1).sqrt()


def watch(modules: list[Any], ids: list[int], model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What each module reads and returns, ``[S, H]``."""
    read: list[Tensor] = []
    returned: list[Tensor] = []

    def keep(_: Any, args: Any, output: Any) -> None:
        read.append(args[0][0] if args else torch.empty(0))
        returned.append((output if isinstance(output, Tensor) else output[0])[0])

    handles = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return read, returned


def layers_of(name: str) -> tuple[Any, Any]:
    plain, family_ = tiny(name).plain, find_family(CONFIGS[name].model_type)
    return plain, plain.base_model.get_submodule(family_.decoder).get_submodule(family_.stack)


@family
def test_a_layers_influence_is_one_minus_the_cosine_of_its_input_and_output(name: str) -> None:
    ids = random_ids(40)
    plain, layers = layers_of(name)
    read, returned = watch(list(layers), ids, plain)
    expected = measured(torch.stack(list(map(one_minus_cosine, read, returned)), dim=-1), "layer")
    assert expected.min() > 1e-4
    torch.testing.assert_close(rows_of(name, "layer", ids), expected.float(), atol=1e-6, rtol=1e-4)


@with_sublayers
def test_a_sublayers_influence_is_that_of_what_it_adds_to_the_stream(name: str) -> None:
    ids = random_ids(40)
    plain, layers = layers_of(name)
    family_, config = find_family(CONFIGS[name].model_type), CONFIGS[name]
    after_attn, after_mlp = POST_NORMS.get(config.model_type, (family_.attn, family_.mlp))
    read, returned = watch(list(layers), ids, plain)
    _, attn = watch([getattr(layer, after_attn) for layer in layers], ids, plain)
    _, mlp = watch([getattr(layer, after_mlp) for layer in layers], ids, plain)
    scale = getattr(config, "residual_multiplier", 1.0)
    expected = []
    for before, after, a, m in zip(read, returned, attn, mlp, strict=True):
        torch.testing.assert_close(before + scale * (a + m), after)  # nothing else is added
        between = before + scale * a
        expected.append(one_minus_cosine(before, between))
        begins = before if name in PARALLEL else between
        expected.append(one_minus_cosine(begins, begins + scale * m))
    found = rows_of(name, "sublayer", ids)
    wanted = measured(torch.stack(expected, dim=-1), "sublayer")
    torch.testing.assert_close(found, wanted.float(), atol=1e-6, rtol=1e-3)


def forwards(model: Any) -> list[Any]:
    """What replaces the `forward` of each module's class, if anything."""
    return [vars(module).get("forward") for module in model.causal_lm.modules()]


@pytest.mark.parametrize("name", ["llama", "phi"])
@pytest.mark.parametrize("kind", ["layer", "sublayer"])
def test_measuring_changes_no_bit_and_leaves_no_trace(name: str, kind: Any) -> None:
    model, ids = tiny(name).gated, torch.tensor([random_ids(30)])
    before, own = model.hidden_states(ids), forwards(model)
    meter = InfluenceMeter(model.gate, kind)
    assert torch.equal(model.hidden_states(ids, meter=meter), before)
    assert forwards(model) == own
    assert not any(module._forward_hooks for module in model.causal_lm.modules())


def test_an_interrupted_pass_leaves_no_trace() -> None:
    model = tiny("llama").gated
    own = forwards(model)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.gate.layers[3].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model.hidden_states(torch.tensor([[5, 6]]), meter=InfluenceMeter(model.gate, "sublayer"))
    handle.remove()
    assert forwards(model) == own


@pytest.mark.parametrize("name", ["llama", "phi"])
@pytest.mark.parametrize("kind", ["layer", "sublayer"])
@pytest.mark.parametrize("chain_bytes", [1, 30_000])
@pytest.mark.parametrize("piece_bytes", [1, 8000])
def test_few_states_at_once_have_the_same_influence(
    name: str, kind: Any, chain_bytes: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows_of(name, kind, random_ids(40))
    monkeypatch.setattr("d3cli.model.influence.CHAIN_BYTES", chain_bytes)
    monkeypatch.setattr("d3cli.model.influence.PIECE_BYTES", piece_bytes)
    assert torch.equal(rows_of(name, kind, random_ids(40)), expected)


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("layer", [0, 0, 3, 1, 0, 6, 5]), ("sublayer", [0, 0, 1, 1, 0, 3, 2])],
)
def test_chunks_are_measured_at_the_positions_of_one_piece(kind: Any, counts: list[int]) -> None:
    model, ids = tiny("llama").gated, random_ids(61)
    whole, found = rows_of("llama", kind, ids), []
    cache = model.new_cache()
    for begin, end in pairwise([0, 1, 3, 15, 16, 17, 40, 61]):
        meter = InfluenceMeter(model.gate, kind, begin)
        model.hidden_states(torch.tensor([ids[begin:end]]), cache, meter=meter)
        cache.commit(end - begin, full_depth=True)
        found.append(meter.rows()[0])
    assert list(map(len, found)) == counts
    torch.testing.assert_close(torch.cat(found), whole, atol=1e-6, rtol=1e-4)


def compare(before: Tensor, after: Tensor) -> Tensor:
    """The influence ``[M]`` of a layer that turns one state ``[1, S, H]`` into another."""
    meter = InfluenceMeter(tiny("llama").gated.gate, "layer")
    meter._begin(before)
    meter._note(after)
    meter._compare_chain()
    return meter.rows()[0, :, 0]


def test_bfloat16_states_are_compared_with_float32_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(1, 400, 1024, generator=generator).bfloat16()
    change = torch.randn(1, 400, 1024, generator=generator) * 0.05
    after = (before + change).bfloat16()
    expected = measured(one_minus_cosine(before, after)[0], "layer").float()
    torch.testing.assert_close(compare(before, after), expected, rtol=1e-3, atol=0)


def test_a_state_of_zeros_is_changed_entirely() -> None:
    zeros, some = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    assert compare(zeros, some).tolist() == [1]
    assert compare(some, zeros).tolist() == [1]
    assert compare(some, some).tolist() == [0]


class TestTable:
    UNITS = unit_names(LAYERS, "layer")

    def table(self) -> InfluenceTable:
        table = InfluenceTable(LAYERS, InfluenceHistory())
        table.measure("layer")
        return table

    def test_positions_in_chunks_are_those_in_one_piece(self) -> None:
        rows, whole, chunked = torch.rand(12, LAYERS), self.table(), self.table()
        whole.write(0, 50, rows)
        for begin, end in pairwise([0, 1, 3, 4, 30, 50]):
            chunked.write(begin, end - begin, rows[begin // 4 : end // 4])
        for length in (16, 20, 50):
            assert chunked.mean(length) == whole.mean(length)
        assert whole.mean(50) == mean_influence(self.UNITS, rows)
        assert whole.mean(23) == mean_influence(self.UNITS, rows[:5])

    def test_a_known_position_keeps_its_value(self) -> None:
        table, rows = self.table(), torch.rand(10, LAYERS)
        table.write(0, 40, rows)
        table.write(5, 35, torch.rand(9, LAYERS))
        table.write(9, 10, torch.rand(2, LAYERS))
        assert table.mean(40) == mean_influence(self.UNITS, rows)
        table.crop(18)
        table.write(10, 30, rows[2:])
        assert table.mean(40) == mean_influence(self.UNITS, rows)

    def test_another_kind_of_unit_starts_again(self) -> None:
        table = self.table()
        table.write(0, 20, torch.rand(5, LAYERS))
        table.measure("layer")
        assert table.length == 20
        table.measure("sublayer")
        assert (table.length, len(table.units)) == (0, 2 * LAYERS)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_states_that_are_not_finite_are_named(self, value: float) -> None:
        rows = torch.rand(5, LAYERS)
        rows[1, 5] = value
        table = self.table()
        table.write(0, 20, rows)
        with pytest.raises(GenerationError, match="around unit 5 are not finite"):
            table.mean(20)


class TestHistory:
    UNITS = ("0", "1")

    def test_it_needs_enough_positions(self) -> None:
        history = InfluenceHistory()
        assert history.mean(self.UNITS, "layer", [1]) is None
        history.add("layer", torch.full((3, 2), 0.5), 15)
        assert history.mean(self.UNITS, "layer", [2]) is None
        history.add("layer", torch.tensor([[0.1, float("nan")]]), 4)  # left out
        assert history.mean(self.UNITS, "layer", [3]) is None
        history.add("layer", torch.tensor([[0.9, 0.1]]), 4)
        found = history.mean(self.UNITS, "layer", [4])
        assert found is not None
        assert found.positions == 19
        assert found.mean == pytest.approx({"0": 0.6, "1": 0.4})
        assert history.mean(self.UNITS, "sublayer", [4]) is None

    def test_positions_that_are_not_measured_are_not_enough(self) -> None:
        history = InfluenceHistory()
        for _ in range(9):
            history.add("layer", torch.empty(0, 2), 3)
        assert history.mean(self.UNITS, "layer", [1]) is None
        assert history.mean(self.UNITS, "sublayer", [4]) is None

    def test_the_same_prompt_gets_the_same_answer(self) -> None:
        history = InfluenceHistory()
        assert history.mean(self.UNITS, "layer", [1, 2]) is None
        history.add("layer", torch.rand(4, 2), 16)
        first = history.mean(self.UNITS, "layer", [1])
        history.add("layer", torch.rand(4, 2), 16)
        assert history.mean(self.UNITS, "layer", [1, 2]) is None
        assert history.mean(self.UNITS, "layer", [1]) == first
        assert history.mean(self.UNITS, "layer", [3]) != first
