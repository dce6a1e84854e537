"""Replies whose skip order comes from the prompt, after any history of the engine."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from d3cli.base.errors import ScheduleError
from d3cli.decode.session import Engine
from d3cli.depth.prompt_order import MIN_POSITIONS, PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import unit_names
from d3cli.model.influence import InfluenceMeter
from d3cli.model.influence_table import InfluenceHistory, mean_influence
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.decode.replies import greedy, ids
from tests.families import (
    CONFIGS,
    LAYERS,
    quick_or_slow,
    random_ids,
    tiny,
    units_of,
    whole_layers,
)

KINDS = [
    (name, kind)
    for name in CONFIGS
    for kind in ("layer", "sublayer", "plane")
    if kind == "layer" or "sublayers" in units_of(name)
]
TOKENS = 16
History = Callable[[Engine, list[int], PromptSchedule], list[int]]


def by_prompt(model: LoadedModel, kind: Any = "layer", alpha: float = 0.93) -> PromptSchedule:
    schedule = model.schedule(alpha, start=2, core_first=1, core_last=2, units=kind)
    assert isinstance(schedule, PromptSchedule)
    return schedule


def order_of(model: LoadedModel, schedule: PromptSchedule, prompt: list[int]) -> DepthSchedule:
    """The obvious way: one pass over the prompt alone."""
    meter = InfluenceMeter(model.gate, schedule.kind)
    model.hidden_states(torch.tensor([prompt]), meter=meter)
    units = unit_names(model.num_layers, schedule.kind)
    return schedule.ordered(mean_influence(units, meter.rows()[0]))


@pytest.mark.parametrize(("name", "kind"), quick_or_slow(KINDS))
def test_tokens_are_those_of_the_slow_reference_in_the_prompts_order(name: str, kind: str) -> None:
    tiny_ = tiny(name, nested=kind == "plane")
    schedule, prompt = by_prompt(tiny_.gated, kind), random_ids(20, seed=4)
    ordered = order_of(tiny_.gated, schedule, prompt)
    reply = greedy(Engine(tiny_.gated), prompt, schedule, max_tokens=TOKENS)
    found = ids(reply)
    # In one pass: if each token is the best after those before it, it would write the same reply.
    rows = tiny_.reference.logits([*prompt, *found[:-1]], len(prompt), ordered)[len(prompt) - 1 :]
    assert rows.argmax(-1).tolist() == found
    assert len(found) == TOKENS
    assert reply.schedule == ordered
    assert reply.tokens[-1].depth < LAYERS
    (scores,) = score(tiny_.gated, [Document(prompt, found)], reply.schedule)
    ours = torch.tensor([token.logprob for token in reply.tokens], dtype=torch.float64)
    assert (ours - scores.log_probs).abs().max() < 1e-5


def test_two_prompts_may_have_two_orders() -> None:
    model = tiny("llama").gated
    orders = {
        order_of(model, by_prompt(model), random_ids(20, seed=seed)).skip_order for seed in range(8)
    }
    assert len(orders) > 1


def turn(engine: Engine, prompt: list[int], schedule: Any) -> list[int]:
    return [*prompt, *ids(greedy(engine, prompt, schedule, max_tokens=12)), 7, 8]


def same_prompt(engine: Engine, prompt: list[int], schedule: PromptSchedule) -> list[int]:
    turn(engine, prompt, schedule)
    return prompt


def full_depth(engine: Engine, prompt: list[int], _: PromptSchedule) -> list[int]:
    return turn(engine, prompt, DepthSchedule.full(LAYERS))


def another_order(engine: Engine, prompt: list[int], _: PromptSchedule) -> list[int]:
    return turn(engine, turn(engine, prompt, by_prompt(engine.model)), whole_layers())


def interrupted(engine: Engine, prompt: list[int], schedule: PromptSchedule) -> list[int]:
    reply = greedy(engine, prompt, schedule, max_tokens=12)
    for _, _chunk in zip(range(6), reply, strict=False):
        pass
    return [*prompt, *(token.token_id for token in reply.tokens), 9]


def in_the_prefill(engine: Engine, prompt: list[int], schedule: PromptSchedule) -> list[int]:
    next(engine.read_ahead(prompt, 6, schedule=schedule))
    return prompt


def read_ahead(engine: Engine, prompt: list[int], schedule: PromptSchedule) -> list[int]:
    following = turn(engine, prompt, schedule)
    list(engine.read_ahead(following[:-1], 5, schedule=schedule))
    return following


def unmeasured(engine: Engine, prompt: list[int], schedule: PromptSchedule) -> list[int]:
    following = turn(engine, prompt, schedule)
    list(engine.read_ahead(following[:-1], 5))
    return following


def repaired(engine: Engine, prompt: list[int], schedule: PromptSchedule) -> list[int]:
    following = turn(engine, prompt, schedule)
    engine.repair(recheck=True)
    return following


def edited(engine: Engine, prompt: list[int], schedule: PromptSchedule) -> list[int]:
    return [*turn(engine, prompt, schedule)[:17], *random_ids(12, seed=9)]


def cleared(engine: Engine, prompt: list[int], schedule: PromptSchedule) -> list[int]:
    turn(engine, prompt, schedule)
    engine.clear()
    return random_ids(23, seed=11)


def cropped(engine: Engine, prompt: list[int], schedule: PromptSchedule) -> list[int]:
    turn(engine, prompt, schedule)
    engine.cache.crop(0)
    return prompt


# Each does something to an engine and returns the next prompt.
HISTORIES = (
    same_prompt,
    full_depth,
    another_order,
    interrupted,
    in_the_prefill,
    read_ahead,
    unmeasured,
    repaired,
    edited,
    cleared,
    cropped,
)


class TestHistories:
    """Whatever the engine did before, the order and the tokens are those of a fresh engine."""

    @pytest.fixture(params=["layer", "sublayer"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return request.param

    def check(self, engine: Engine, prompt: list[int], schedule: PromptSchedule) -> None:
        reply = greedy(engine, prompt, schedule, max_tokens=9)
        fresh = greedy(Engine(engine.model), prompt, schedule, max_tokens=9)
        assert ids(reply) == ids(fresh)
        assert reply.schedule == fresh.schedule == order_of(engine.model, schedule, prompt)
        assert reply.notes == ()

    @pytest.mark.parametrize("history", HISTORIES)
    def test_the_order_is_a_fresh_engines(self, history: History, kind: str) -> None:
        model = tiny("qwen3-sliding").gated
        engine, schedule = Engine(model), by_prompt(model, kind)
        following = history(engine, random_ids(20, seed=5), schedule)
        self.check(engine, following, schedule)

    def test_a_cache_that_was_measured_is_reused(self) -> None:
        model = tiny("llama").gated
        engine, schedule = Engine(model), by_prompt(model)
        prompt = random_ids(20)
        first = greedy(engine, prompt, schedule, max_tokens=9)
        second = greedy(engine, [*prompt, *ids(first), 7, 8], schedule, max_tokens=9)
        list(second.prefill())
        assert second.reused == 20  # the warm-up steps were not measured, so they are read again

    def test_the_same_prompt_again_uses_the_same_values(self) -> None:
        """Even where reading it again would round differently."""
        model = tiny("llama").gated
        engine, schedule = Engine(model), by_prompt(model)
        prompt = random_ids(20)
        ids(greedy(engine, prompt, schedule, max_tokens=9))
        table = engine._shared.influence
        before = table.mean(20)
        table._rows[:] += 0.125 * torch.rand(LAYERS)  # as if the values were another chunking's
        changed = table.mean(20)
        assert changed != before
        again = greedy(engine, prompt, schedule, max_tokens=9)
        ids(again)
        assert table.mean(20) == changed
        assert again.schedule == schedule.ordered(changed)


class TestShortPrompts:
    SHORT = tuple(range(5, 5 + MIN_POSITIONS - 1))

    @pytest.fixture
    def model(self) -> LoadedModel:
        """A model that has read nothing yet."""
        model = tiny("llama").gated
        object.__setattr__(model, "influence", InfluenceHistory())
        return model

    def test_the_first_one_runs_at_full_depth(self, model: LoadedModel) -> None:
        reply = greedy(Engine(model), self.SHORT, by_prompt(model), max_tokens=9)
        assert ids(reply) == ids(
            greedy(Engine(model), self.SHORT, DepthSchedule.full(LAYERS), max_tokens=9)
        )
        assert reply.schedule.skip_order == ()
        (note,) = reply.notes
        assert "the prompt has 15 tokens, and at least 16 are needed" in note
        assert "runs at full depth" in note

    def test_a_later_one_uses_what_was_read_so_far(self, model: LoadedModel) -> None:
        schedule = by_prompt(model)
        ids(greedy(Engine(model), random_ids(20), schedule, max_tokens=2))
        reply = greedy(Engine(model), self.SHORT, schedule, max_tokens=9)
        ids(reply)
        both = torch.cat([self.rows(model, random_ids(20)), self.rows(model, list(self.SHORT))])
        units = unit_names(LAYERS, "layer")
        assert reply.schedule == schedule.ordered(mean_influence(units, both))
        (note,) = reply.notes
        assert note.endswith("the order comes from 35 tokens read so far")

    def test_the_same_one_again_gets_the_same_order(self, model: LoadedModel) -> None:
        engine, schedule = Engine(model), by_prompt(model)
        first = greedy(engine, self.SHORT, schedule, max_tokens=9)
        expected = ids(first)
        ids(greedy(engine, random_ids(30), schedule, max_tokens=2))
        again = greedy(engine, self.SHORT, schedule, max_tokens=9)
        assert ids(again) == expected
        assert again.schedule == first.schedule

    @staticmethod
    def rows(model: LoadedModel, prompt: list[int]) -> torch.Tensor:
        meter = InfluenceMeter(model.gate, "layer")
        model.hidden_states(torch.tensor([prompt]), meter=meter)
        return meter.rows()[0]


def test_before_the_prompt_is_read_the_settings_are_known() -> None:
    model = tiny("llama").gated
    schedule = by_prompt(model)
    reply = greedy(Engine(model), random_ids(20), schedule)
    assert reply.schedule == schedule.without_order()
    list(reply.prefill())
    assert len(reply.schedule.skip_order) == len(schedule.units)


def test_sublayers_of_a_family_without_them_are_refused() -> None:
    model = tiny("opt").gated
    with pytest.raises(ScheduleError, match="no separate sublayers"):
        model.schedule(0.9, units="sublayer")
