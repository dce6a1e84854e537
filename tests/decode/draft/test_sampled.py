"""Sampled lossless replies have the distribution of plain ones; looked-up drafts, their text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import LlamaConfig

from d3cli.decode.draft.by_depth import DepthSource
from d3cli.decode.draft.by_model import ModelSource
from d3cli.decode.draft.lookup import LookupSource
from d3cli.decode.draft.source import DraftSource
from d3cli.decode.rules import GenerationRules
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.model.wrap import wrap_model
from tests.decode.draft.fixed import Always, Listed
from tests.decode.replies import ids
from tests.families import CONFIGS, random_ids, random_model, tiny, word_tokenizer

PROMPT = [5, 6, 7, 5, 6]
VOCAB = 12
WARM = SamplingParams(temperature=1.3)
SETTINGS = {
    "temperature": WARM,
    "top-k": replace(WARM, top_k=4),
    "top-p": replace(WARM, top_p=0.7),
    "min-p": replace(WARM, min_p=0.2),
    "repetition penalty": replace(WARM, repetition_penalty=1.8),
    "all": replace(WARM, top_k=8, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
    "rules": replace(
        WARM,
        rules=GenerationRules(
            no_repeat_ngram_size=2,
            suppress_tokens=(3,),
            sequence_bias=(((6, 9), 2.0), ((4,), -1.0)),
            bad_words_ids=((6, 10),),
            typical_p=0.9,
        ),
    ),
}
# How often such a test may fail by chance.
MISTAKE = 1e-6


def random_logits(seed: int, scale: float = 1.5) -> Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def assert_drawn_from(counts: Counter[int], probabilities: Sequence[float]) -> None:
    """Pearson's chi-square test; outcomes that are expected less than five times count as one."""
    total = counts.total()
    assert all(probabilities[outcome] > 0 for outcome in counts)
    pairs = [(counts[at], total * p) for at, p in enumerate(probabilities)]
    bins = [pair for pair in pairs if pair[1] >= 5]
    rare = [pair for pair in pairs if 0 < pair[1] < 5]
    if sum(expected for _, expected in rare) >= 5:
        bins.append((sum(n for n, _ in rare), sum(expected for _, expected in rare)))
    assert len(bins) > 1
    statistic = sum((n - expected) ** 2 / expected for n, expected in bins)
    assert chi2.sf(statistic, len(bins) - 1) > MISTAKE, (counts, probabilities)


class TestVerify:
    """Tokens that a draft's distribution gives become tokens of full depth's."""

    @pytest.mark.parametrize("name", SETTINGS)
    def test_accepted_and_replaced_tokens_together_have_full_depths_distribution(
        self, name: str
    ) -> None:
        sampler = Sampler(replace(SETTINGS[name], seed=11), prompt_ids=PROMPT)
        drafts = sampler.for_drafts()
        full, cheap = random_logits(1), random_logits(1) + random_logits(2, scale=0.8)
        wanted = sampler.probabilities(full, PROMPT)
        counts: Counter[int] = Counter()
        accepted = 0
        for _ in range(1500):
            drafted, (drafted_from,) = drafts.draft(cheap, PROMPT)
            token_id = sampler.verify(full, PROMPT, drafted, drafted_from)
            counts[token_id] += 1
            accepted += token_id == drafted
        assert_drawn_from(counts, wanted.tolist())
        # The overlap of the two distributions, within six standard deviations.
        overlap = float(torch.minimum(wanted, drafts.probabilities(cheap, PROMPT)).sum())
        assert abs(accepted / 1500 - overlap) < 6 * (overlap * (1 - overlap) / 1500) ** 0.5

    @pytest.mark.parametrize("seed", [None, 0, 3, 2**32 + 3, 2**63 - 1])
    def test_drafts_draw_by_other_chance_than_the_reply(self, seed: int | None) -> None:
        sampler = Sampler(replace(WARM, seed=seed))
        drafts, flat = sampler.for_drafts(), torch.ones(2)
        ours, theirs = ([each.draw(flat) for _ in range(200)] for each in (sampler, drafts))
        assert 60 < sum(map(int.__eq__, ours, theirs)) < 140

    def test_a_token_that_full_depth_never_chooses_is_never_accepted(self) -> None:
        sampler = Sampler(replace(WARM, top_k=2, seed=1))
        full = random_logits(1)
        kept = sampler.probabilities(full, PROMPT).nonzero().flatten().tolist()
        drafted = next(id_ for id_ in range(VOCAB) if id_ not in kept)
        certain = torch.zeros(VOCAB).index_fill_(0, torch.tensor(drafted), 1.0)
        assert {sampler.verify(full, PROMPT, drafted, certain) for _ in range(200)} == set(kept)

    def test_a_draft_from_the_same_distribution_is_always_accepted(self) -> None:
        sampler, full = Sampler(replace(WARM, seed=1)), random_logits(1)
        same = sampler.probabilities(full, PROMPT)
        for drafted in range(VOCAB):
            for _ in range(50):
                assert sampler.verify(full, PROMPT, drafted, same) == drafted


LAYERS = 3
SHAPE = CONFIGS["llama"].to_dict() | {"num_hidden_layers": LAYERS}
SCHEDULE = DepthSchedule(LAYERS, 0.5, 0, 1, 1, ("1",))
FULL = DepthSchedule.full(LAYERS)


@cache
def small(noise: float = 0.0) -> LoadedModel:
    """A model whose replies take a few milliseconds, or one that is like it."""
    model = random_model(LlamaConfig(**SHAPE), "sdpa")
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * noise)
    for linear in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        linear.weight.data.mul_(0.3)  # the layer that drafts drop matters less
    return wrap_model(model, word_tokenizer())


def source(name: str) -> DraftSource:
    """What drafts; it differs from full depth, but not in all tokens."""
    return DepthSource(small()) if name == "depth" else ModelSource(small(), small(noise=0.04))


def reply_probabilities(sampling: SamplingParams, tokens: int) -> dict[tuple[int, ...], float]:
    """The probability of each reply, by the definition: a product over its tokens."""
    sampler = Sampler(sampling, prompt_ids=PROMPT)
    found = {(): 1.0}
    for _ in range(tokens):
        longer = {}
        for reply, probability in found.items():
            token_ids = [*PROMPT, *reply]
            hidden = small().hidden_states(torch.tensor([token_ids]))[0, -1]
            each = sampler.probabilities(small().logits(hidden), token_ids)
            for token_id in each.nonzero().flatten().tolist():
                longer[*reply, token_id] = probability * float(each[token_id])
        found = longer
    return found


class TestReplies:
    @pytest.mark.parametrize(
        ("name", "settings", "replies"), [("depth", "plain", 250), ("model", "penalty", 250)]
    )
    def test_whole_replies_have_the_distribution_of_plain_ones(
        self, name: str, settings: str, replies: int
    ) -> None:
        sampling = {
            "plain": SamplingParams(temperature=2.0, top_k=2),
            "penalty": SamplingParams(temperature=2.0, top_k=2, repetition_penalty=1.5),
        }[settings]
        engine, drafter = Engine(small()), Always(source(name), lengths=(2,))
        expected = reply_probabilities(sampling, 4)
        numbers = {reply: number for number, reply in enumerate(expected)}
        counts: Counter[int] = Counter()
        accepted = drafted = 0
        for seed in range(replies):
            reply = engine.stream_ids(
                PROMPT,
                schedule=SCHEDULE,
                sampling=replace(sampling, seed=seed),
                max_tokens=4,
                drafter=drafter,
            )
            counts[numbers[tuple(ids(reply))]] += 1
            drafted += sum(len(done.draft_ids) for done in reply.verifications)
            accepted += sum(done.accepted for done in reply.verifications)
        assert 0.1 * drafted < accepted < 0.95 * drafted, accepted / drafted
        assert_drawn_from(counts, list(expected.values()))

    @pytest.mark.parametrize("name", SETTINGS)
    def test_replies_by_lookup_are_the_plain_ones_of_the_same_seed(self, name: str) -> None:
        model = tiny("qwen3").gated
        prompt = [*random_ids(9), *random_ids(9), *PROMPT]
        drafters = (None, Always(LookupSource()), Always(Listed(len(prompt), [])))
        plain, by_lookup, by_noise = (
            ids(
                Engine(model).stream_ids(
                    prompt,
                    schedule=DepthSchedule.full(model.num_layers),
                    sampling=replace(SETTINGS[name], seed=1),
                    max_tokens=30,
                    drafter=drafter,
                )
            )
            for drafter in drafters
        )
        assert by_lookup == plain
        assert by_noise == plain
