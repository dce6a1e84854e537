"""Layers on several devices and in stores compute what one device computes; drops move nothing.

The GPUs are pretended: an operation on tensors of two of them is an error. Layers lie in an order
that no plan would choose, so that states move back and forth.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import Tensor

from d3cli.decode.session import Engine
from d3cli.depth.families import find_family
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.influence import InfluenceMeter
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel
from d3cli.model.placement import Needs, Placement
from d3cli.model.spread import spread
from d3cli.model.wrap import wrap_model
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import Scorer, score
from tests.decode.replies import greedy, ids
from tests.families import (
    CONFIGS,
    LAYERS,
    Tiny,
    in_turn,
    random_ids,
    random_model,
    some_families,
    sublayers,
    tiny,
    whole_layers,
    word_tokenizer,
)
from tests.pretended import PretendedGPUs

HOMES = ("cuda:0", "cuda:1", "cpu", "cpu", "cuda:1", "disk", "cuda:0", "cpu")
PLACEMENT = Placement(
    Needs(outside=1, layers=(1,) * LAYERS, kv_per_layer=1, workspace=1),
    main="cuda:0",
    homes=HOMES,
    stores=frozenset(("cpu", "disk")),
)
STORED = tuple(layer for layer, home in enumerate(HOMES) if home in PLACEMENT.stores)
PROMPT, NEW, MORE = random_ids(9, seed=1), 8, random_ids(5, seed=2)
FULL = DepthSchedule.full(LAYERS)
STEEP = 0.9  # so that short replies drop much
TOLERANCE = 1e-5  # absolute, in log-probabilities


@dataclass
class Spread:
    """A family on pretended GPUs, and how often each weight was moved out of a store."""

    model: LoadedModel
    moves: Counter[str] = field(default_factory=Counter)


@cache
def spread_out(name: str) -> Spread:
    kind = find_family(CONFIGS[name].model_type)
    causal_lm = random_model(CONFIGS[name], kind.attention)
    causal_lm.set_experts_implementation("eager")  # transformers asks real GPUs what they can do
    names = {p.data_ptr(): name for name, p in causal_lm.named_parameters()}
    moves: Counter[str] = Counter()

    def read(weight: Tensor) -> Callable[[], Tensor]:
        def values() -> Tensor:
            moves[names[weight.data_ptr()]] += 1
            return weight

        return values

    with PretendedGPUs():
        spread(causal_lm, kind, PLACEMENT, read)
        model = wrap_model(causal_lm, word_tokenizer(), name=name)
    moves.clear()
    return Spread(model, moves)


def kinds_of(name: str) -> list[str]:
    """The schedules that `schedule_of` makes for a family."""
    has_sublayers = find_family(CONFIGS[name].model_type).has_sublayers
    return ["layers", "full", *(["sublayers"] if has_sublayers else [])]


def schedule_of(kind: str, model: Tiny) -> DepthSchedule:
    if kind == "full":
        return FULL
    return whole_layers(STEEP) if kind == "layers" else sublayers(model.gated, STEEP)


def two_turns(model: LoadedModel, schedule: DepthSchedule) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities of a reply, and of one at full depth after the repair."""
    engine = Engine(model)
    first = greedy(engine, PROMPT, schedule, max_tokens=NEW)
    reply = ids(first)
    second = greedy(engine, [*PROMPT, *reply, *MORE], FULL, max_tokens=4)
    ids(second)
    tokens = [*first.tokens, *second.tokens]
    return [token.token_id for token in tokens], [token.logprob for token in tokens]


def test_tensors_of_two_pretended_gpus_never_meet() -> None:
    with PretendedGPUs():
        one, other = torch.ones(2, device="cuda:0"), torch.ones(2).to("cuda:1")
        assert [str(each.device) for each in (one, other, one + one, other.cpu())] == [
            *("cuda:0", "cuda:1", "cuda:0", "cpu")
        ]
        for pair in ((one, other), (one, torch.ones(2))):
            with pytest.raises(RuntimeError, match="of tensors on"):
                torch.cat(pair)


# Each kind of schedule meets several families; that each pair of them is right, one device shows.
@pytest.mark.parametrize(("name", "kind"), in_turn(kinds_of))
def test_replies_repairs_and_scores_are_those_of_one_device(name: str, kind: str) -> None:
    one, several = tiny(name), spread_out(name).model
    schedule = schedule_of(kind, one)
    expected_ids, expected = two_turns(one.gated, schedule)
    document = Document(PROMPT, expected_ids[:NEW])
    with PretendedGPUs():
        found_ids, found = two_turns(several, schedule)
        (scores,) = score(several, [document], schedule)
        scored = scores.log_probs.tolist()
    assert found_ids == expected_ids
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert scored == pytest.approx(expected[:NEW], abs=TOLERANCE)


@some_families
def test_each_layer_keeps_its_keys_and_values_where_it_runs(name: str) -> None:
    one, several = tiny(name).gated, spread_out(name).model
    token_ids = torch.tensor([random_ids(12, seed=3)])
    expected = _read(one, token_ids)
    with PretendedGPUs():
        found = _read(several, token_ids)
        for layer, device in enumerate(PLACEMENT.runs_on):
            theirs = expected.keys_and_values(layer)
            for ours, other in zip(found.keys_and_values(layer), theirs, strict=True):
                assert str(ours.device) == device
                torch.testing.assert_close(ours.cpu(), other, atol=1e-5, rtol=0)


def _read(model: LoadedModel, token_ids: Tensor) -> KVCache:
    cache = model.new_cache()
    model.hidden_states(token_ids.to(model.device), cache)
    cache.commit(token_ids.shape[1], full_depth=True)
    return cache


@some_families
def test_a_dropped_unit_moves_no_weights(name: str) -> None:
    here = spread_out(name)
    sets = [set(), {"2", "5"}, {"0", "2", "3", "5", "7"}]
    if here.model.gate.family.has_sublayers:
        sets += [{"2.attn", "3.mlp", "7.attn", "7.mlp"}, {"2", "3.attn", "5.mlp"}]
    with PretendedGPUs():
        cache = _read(here.model, torch.tensor([PROMPT]))
        for dropped in sets:
            here.moves.clear()
            token = torch.tensor([[5]], device=here.model.device)
            here.model.hidden_states(token, cache, limits=dict.fromkeys(dropped, 0))
            assert here.moves == Counter(_weights_of_stored(here.model, dropped))


def _weights_of_stored(model: LoadedModel, dropped: set[str]) -> list[str]:
    """The weights of stored layers, each once, without those of dropped units."""
    kind = model.gate.family
    names = {id(module): name for name, module in model.causal_lm.named_modules()}
    found = []
    for layer in STORED:
        if f"{layer}" in dropped:
            continue
        gone = [
            f"{path}." for part, path in (("attn", kind.attn), ("mlp", kind.mlp))
            if f"{layer}.{part}" in dropped
        ]  # fmt: skip
        module = model.gate.layers[layer]
        weights = (weight for weight, _ in module.named_parameters())
        found += [
            f"{names[id(module)]}.{weight}"
            for weight in weights
            if not weight.startswith(tuple(gone))
        ]
    return found


@some_families
def test_stored_weights_take_no_memory_between_passes(name: str) -> None:
    here = spread_out(name)
    with PretendedGPUs():
        _read(here.model, torch.tensor([PROMPT]))
    for layer in STORED:
        parameters = list(here.model.gate.layers[layer].parameters())
        assert parameters
        assert all(parameter.is_meta for parameter in parameters)


@some_families
def test_influence_and_remembered_layers_are_those_of_one_device(name: str) -> None:
    one, several = tiny(name).gated, spread_out(name).model
    token_ids = torch.tensor([random_ids(40, seed=4)])
    kinds = ["layer", *(["sublayer"] if one.gate.family.has_sublayers else [])]
    for kind in kinds:
        expected = _influence(one, token_ids, kind)
        with PretendedGPUs():
            found = _influence(several, token_ids, kind)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    document = Document(PROMPT, random_ids(NEW, seed=5))
    expected_lens, expected_scores = _lens(one, document)
    with PretendedGPUs():
        lens, scores = _lens(several, document)
    assert lens == expected_lens
    assert scores == pytest.approx(expected_scores, abs=TOLERANCE)


def _influence(model: LoadedModel, token_ids: Tensor, kind: str) -> Tensor:
    meter = InfluenceMeter(model.gate, kind)  # type: ignore[arg-type]
    model.hidden_states(token_ids.to(model.device), meter=meter)
    return meter.rows()


def _lens(model: LoadedModel, document: Document) -> tuple[list[list[int]], list[float]]:
    """What the logit lens sees after some layers; and scores from a remembered layer on."""
    scorer = Scorer(model, [document])
    lens = [tops[0].tolist() for tops in scorer.lens([1, 2, 4, 7])]
    scorer.remember(FULL, [0, 1])
    (scores,) = scorer.score(whole_layers())
    return lens, scores.log_probs.tolist()
