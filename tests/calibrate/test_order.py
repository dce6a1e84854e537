"""Which unit goes first: influence, and greedy loss per byte."""

from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch

from d3cli.calibrate.clock import OutOfTime, SearchClock
from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.influence import measure_influence, order_by_influence
from d3cli.calibrate.order import GreedyOrder, units_of
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Losses
from tests.families import random_ids, tiny
from tests.planted import IDLE, QUIET, documents, planted


def influence_of_layers(model: LoadedModel, document: Document) -> list[float]:
    """One minus the cosine of each layer's input and output, from hooks on the plain model."""
    ids = torch.tensor([[*document.prompt_ids, *document.response_ids[:-1]]])
    inputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs: inputs.append(
                args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        for layer in model.gate.layers
    ]
    last: list[torch.Tensor] = []
    hooks.append(
        model.gate.layers[-1].register_forward_hook(
            lambda _module, _args, output: last.append(
                output if isinstance(output, torch.Tensor) else output[0]
            )
        )
    )
    with torch.inference_mode():
        model.causal_lm(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    states = [*inputs, *last]
    first = len(document.prompt_ids) - 1
    return [
        float((1 - torch.cosine_similarity(a[0, first:], b[0, first:], dim=-1)).mean())
        for a, b in pairwise(states)
    ]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "mixtral"])
def test_a_layers_influence_is_one_minus_the_cosine_of_its_input_and_output(name: str) -> None:
    model = tiny(name).gated
    document = Document(random_ids(6), random_ids(12, seed=1))
    found = measure_influence(model, [document], units_of(model, "layer"))
    expected = influence_of_layers(model, document)[1:-1]
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0.001


def test_measuring_influence_does_not_change_the_model() -> None:
    model = tiny("llama").gated
    ids = torch.tensor([random_ids(20)])
    before = model.hidden_states(ids)
    document = Document(random_ids(6), random_ids(12, seed=1))
    measure_influence(model, [document], units_of(model, "sublayer"))
    assert torch.equal(model.hidden_states(ids), before)
    assert not any(layer._forward_hooks for layer in model.gate.layers)


def greedy_order(kind: str, most_lost: float = 0.1) -> list[str]:
    model, texts = planted(), documents()
    units = units_of(model, kind)
    ranking = order_by_influence(model, measure_influence(model, texts[:8], units))
    evaluator = Evaluator(model, texts, (20, len(texts)), SearchClock(1e9))
    greedy = GreedyOrder(model, evaluator, 20, ranking, most_lost)
    tried = list(greedy)
    assert len(tried) >= len(units)
    return greedy.order


def test_layers_that_do_nothing_have_no_influence() -> None:
    found = measure_influence(planted(), documents()[:8], units_of(planted(), "layer"))
    assert [found[str(layer)] for layer in IDLE] == pytest.approx([0, 0, 0], abs=1e-6)


def test_greedy_keeps_a_layer_with_little_influence_but_a_high_loss() -> None:
    model = planted()
    influence = measure_influence(model, documents()[:8], units_of(model, "layer"))
    quick = order_by_influence(model, influence)
    assert quick[:3] == [str(layer) for layer in IDLE] and quick[3] == str(QUIET)
    order = greedy_order("layer")
    assert set(order[:3]) == {str(layer) for layer in IDLE}
    assert len(order) > 3 and str(QUIET) not in order


def test_greedy_finds_the_sublayers_that_do_nothing() -> None:
    order = greedy_order("sublayer")
    idle = {f"{layer}.{part}" for layer in IDLE for part in ("attn", "mlp")}
    assert set(order[:6]) == idle
    assert f"{QUIET}.mlp" not in order


def test_greedy_stops_cleanly_when_the_time_ends() -> None:
    model, texts = planted(), documents()
    clock = SearchClock(1e9)
    evaluator = Evaluator(model, texts, (20, len(texts)), clock)
    greedy = GreedyOrder(model, evaluator, 20, units_of(model, "layer"), 1e9)
    with pytest.raises(OutOfTime):
        for number, _ in enumerate(greedy):
            if number == 10:
                clock.deadline = 0
    assert 0 < len(greedy.order) < 7


def test_a_static_schedule_drops_its_whole_order_in_the_first_decode_step() -> None:
    model = planted()
    order = ["5.mlp", "2.attn", "7.mlp"]
    schedule = static_schedule(model.weight_bytes, order)
    assert schedule.dropped(0) == ()
    assert schedule.dropped(1) == tuple(order)
    assert (schedule.core_first, schedule.core_last) == (2, 1)


class MadeUpLosses:
    """An evaluator of layers that lose made-up amounts on four documents of one token."""

    documents = (Document([1], [1]),) * 4
    LOSSES: ClassVar = {
        "2": [0.03, 0.06, 0.02, 0.05],
        "3": [0.01, 0.01, 0.01, 0.01],
        "5": [-0.50, 0.60, -0.55, 0.44],
    }

    def remember(self, *_: object) -> None:
        pass

    def full_losses(self, count: int) -> Losses:
        return [np.zeros(1)] * count

    def losses(self, schedule: DepthSchedule, count: int) -> Losses:
        lost = np.sum([self.LOSSES[unit] for unit in schedule.skip_order], axis=0)
        return [np.array([each]) for each in lost[:count]]


def test_greedy_prefers_what_certainly_costs_little_to_what_may_have_been_luck() -> None:
    # Unit 2 has the least influence, and unit 5 the lowest mean loss.
    greedy = GreedyOrder(planted(), MadeUpLosses(), 4, ["2", "5", "3"], 1e9)
    list(greedy)
    assert greedy.order == ["3", "2", "5"]
