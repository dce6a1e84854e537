"""Sampling chooses the tokens that transformers would choose."""

import pytest
import torch

from d3cli.base.errors import ModelError, SamplingError
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from tests.families import random_ids, tiny

NEW_TOKENS = 20


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=0.7, top_k=12, seed=2),
        SamplingParams(temperature=1.4, top_p=0.8, seed=3),
        SamplingParams(temperature=1.0, min_p=0.2, seed=4),
        SamplingParams(temperature=0.9, top_k=40, top_p=0.9, min_p=0.05, seed=5),
        SamplingParams(temperature=1.0, repetition_penalty=1.3, seed=6),
        SamplingParams(repetition_penalty=1.7),
        SamplingParams(),
    ],
    ids=str,
)
def test_a_seed_draws_the_tokens_that_transformers_draws(params: SamplingParams) -> None:
    model = tiny("llama")
    prompt = random_ids(12)
    torch.manual_seed(params.seed or 0)
    settings = {} if params.is_greedy else {"temperature": params.temperature}
    expected = model.plain.generate(
        torch.tensor([prompt]),
        max_new_tokens=NEW_TOKENS,
        do_sample=not params.is_greedy,
        top_k=params.top_k or 0,
        top_p=params.top_p,
        min_p=params.min_p or None,
        repetition_penalty=params.repetition_penalty,
        **settings,
    )[0, len(prompt) :].tolist()
    reply = Engine(model.gated).stream_ids(
        prompt, schedule=model.gated.schedule("off"), sampling=params, max_tokens=NEW_TOKENS
    )
    assert [chunk.token_id for chunk in reply] == expected


def test_a_seed_repeats_and_another_differs() -> None:
    logits = torch.zeros(1000)

    def draw(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.choose(logits, []) for _ in range(20)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_a_draw_from_the_probabilities_is_the_choice() -> None:
    logits = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=1.3, top_k=20, repetition_penalty=1.2, seed=4)
    whole, halves = Sampler(params), Sampler(params)
    ids: list[int] = []
    for row in logits:
        probabilities = halves.probabilities(row, ids)
        assert probabilities.shape == (50,)
        assert float(probabilities.sum()) == pytest.approx(1)
        assert int((probabilities > 0).sum()) <= 20
        ids.append(halves.draw(probabilities))
        assert whole.choose(row, ids[:-1]) == ids[-1]
    assert len(set(ids)) > 5


def test_greedy_probabilities_are_one_hot() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0))
    logits = torch.tensor([1.0, 4.0, 3.0, 3.0])
    probabilities = sampler.probabilities(logits, [1])
    assert probabilities.tolist() == [0, 0, 1, 0]  # the penalty halves token 1
    assert sampler.draw(probabilities) == sampler.choose(logits, [1]) == 2


def test_sampling_without_a_seed_draws_one_and_greedy_needs_none() -> None:
    assert SamplingParams(temperature=1.0).with_seed().seed is not None
    assert SamplingParams(temperature=1.0, seed=9).with_seed().seed == 9
    assert SamplingParams().with_seed().seed is None


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1},
        {"temperature": 1e-9},
        {"temperature": 1000},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": 1.5},
        {"top_p": [1]},
        {"seed": True},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 1},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("inf")},
        {"seed": -1},
        {"seed": 2**64},
    ],
    ids=str,
)
def test_impossible_values_are_refused_by_name(fields: dict) -> None:
    (name,) = fields
    with pytest.raises(SamplingError, match=name) as refused:
        SamplingParams(**fields)
    assert refused.value.field == name


class TestResolve:
    CHECKPOINT = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}  # noqa: RUF012

    def test_without_settings_it_is_greedy(self) -> None:
        assert SamplingParams.resolve({}, {}) == SamplingParams()

    def test_the_checkpoint_decides_what_the_user_does_not_set(self) -> None:
        params = SamplingParams.resolve({"seed": 1, "top_k": None}, self.CHECKPOINT)
        assert params == SamplingParams(temperature=0.6, top_p=0.9, seed=1)

    def test_a_checkpoint_that_does_not_sample_is_greedy(self) -> None:
        assert SamplingParams.resolve({}, self.CHECKPOINT | {"do_sample": False}).is_greedy

    def test_a_bad_checkpoint_is_not_a_usage_error(self) -> None:
        broken = {"do_sample": True, "temperature": "hot"}
        with pytest.raises(ModelError, match="generation_config"):
            SamplingParams.resolve({}, broken)
        with pytest.raises(SamplingError, match="top_p is 3"):
            SamplingParams.resolve({"top_p": 3}, broken)
        assert SamplingParams.resolve({"temperature": 0.5}, broken).temperature == 0.5

    def test_the_user_overrides_the_checkpoint(self) -> None:
        params = SamplingParams.resolve({"temperature": 0.0}, self.CHECKPOINT)
        assert params.is_greedy

    def test_top_p_alone_turns_sampling_on(self) -> None:
        assert SamplingParams.resolve({"top_p": 0.5}, {}).temperature == 1.0
        assert SamplingParams.resolve({"top_p": 0.5, "temperature": 0}, {}).is_greedy
