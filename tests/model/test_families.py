"""Every supported family computes D³ exactly, in float32, beyond any sliding window."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, Qwen3MoeConfig

from d3cli.decode.loop import DecodedToken, decode, decode_step, prefill
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.head import top_choices
from d3cli.scoring.one_pass import Scorer, score
from tests.depth.layers import any_order
from tests.families import (
    CONFIGS,
    FAMILY_NAMES,
    LAYERS,
    NESTED,
    case,
    family,
    in_turn,
    random_ids,
    random_model,
    some_families,
    tiny,
    units_of,
    whole_layers,
    word_tokenizer,
)

NEW_TOKENS = 16  # enough to drop all that the schedules drop, past the sliding windows
PROMPT_LEN = 17
TOLERANCE = 1e-5  # absolute, in log-probabilities

GREEDY = SamplingParams()

ALL = [(name, units) for name in FAMILY_NAMES for units in units_of(name)]

family_and_units = pytest.mark.parametrize(("name", "units"), ALL)


def one_kind_of_each_family(shift: int) -> pytest.MarkDecorator:
    """For what does not depend on the pair of family and kind, as decoding may."""
    return pytest.mark.parametrize(("name", "units"), in_turn(units_of, shift))


def run(
    model: LoadedModel,
    prompt_ids: Sequence[int],
    schedule: DepthSchedule,
    chunk_size: int = 512,
    new_tokens: int = NEW_TOKENS,
) -> list[DecodedToken]:
    cache = model.new_cache()
    for chunk in prefill(model, cache, prompt_ids, chunk_size):
        last = chunk.hidden[-1]
    return list(
        decode(
            model,
            cache,
            model.logits(last),
            schedule,
            Sampler(GREEDY),
            prompt_ids=prompt_ids,
            max_tokens=new_tokens,
        )
    )


@cache
def decoded(name: str, units: str) -> tuple[list[int], list[DecodedToken]]:
    """A prompt and its greedy reply, which several tests look at."""
    model, schedule = case(name, units)
    prompt = random_ids(PROMPT_LEN, seed=1)
    return prompt, run(model.gated, prompt, schedule)


def log_probs(logits: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, torch.tensor(token_ids)[:, None])[:, 0].double()


def ids_of(tokens: Sequence[DecodedToken]) -> list[int]:
    return [token.token_id for token in tokens]


@family
def test_full_depth_generates_what_transformers_generates(name: str) -> None:
    model = tiny(name)
    prompt = random_ids(PROMPT_LEN)
    expected = model.plain.generate(
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )
    plain_kinds = [kind for kind in units_of(name) if kind not in NESTED]
    at_alpha_1 = replace(case(name, plain_kinds[-1])[1], alpha=1.0)
    for schedule in (DepthSchedule.full(model.gated.num_layers), at_alpha_1):
        assert ids_of(run(model.gated, prompt, schedule)) == expected[0, PROMPT_LEN:].tolist()


@family
def test_the_gate_at_full_depth_changes_no_bit(name: str) -> None:
    model = tiny(name)
    ids = torch.tensor([random_ids(40)])
    with torch.inference_mode():
        plain = model.plain(ids, use_cache=False).logits
    assert torch.equal(model.gated.logits(model.gated.hidden_states(ids)), plain)


@family_and_units
def test_decoding_equals_the_slow_reference(name: str, units: str) -> None:
    """The reference reads the reply in one pass, and each token is the best after those before it.

    So it would have written the same reply; the test below this one shows that it does.
    """
    model, schedule = case(name, units)
    prompt, tokens = decoded(name, units)
    reply = ids_of(tokens)
    assert schedule.depth(NEW_TOKENS - 1) < model.gated.num_layers
    rows = model.reference.logits([*prompt, *reply[:-1]], PROMPT_LEN, schedule)[PROMPT_LEN - 1 :]
    assert rows.argmax(-1).tolist() == reply
    ours = torch.tensor([token.logprob for token in tokens], dtype=torch.float64)
    assert (ours - log_probs(rows, reply)).abs().max() < TOLERANCE


@one_kind_of_each_family(0)
def test_the_reference_writes_token_by_token_what_it_reads_in_one_pass(
    name: str, units: str
) -> None:
    model, schedule = case(name, units)
    prompt, tokens = decoded(name, units)
    expected, rows = model.reference.generate(prompt, schedule, NEW_TOKENS)
    assert ids_of(tokens) == expected
    at_once = model.reference.logits([*prompt, *expected[:-1]], PROMPT_LEN, schedule)
    found = log_probs(at_once[PROMPT_LEN - 1 :], expected)
    assert (found - log_probs(rows, expected)).abs().max() < TOLERANCE


@some_families
def test_the_reference_itself_departs_from_full_depth(name: str) -> None:
    model = tiny(name)
    ids = random_ids(PROMPT_LEN + NEW_TOKENS)
    full = model.reference.logits(ids, PROMPT_LEN, DepthSchedule.full(model.gated.num_layers))
    decayed = model.reference.logits(ids, PROMPT_LEN, whole_layers())
    assert torch.allclose(full[:PROMPT_LEN], decayed[:PROMPT_LEN], atol=1e-5)
    assert (full[-1] - decayed[-1]).abs().max() > 0.1


@one_kind_of_each_family(1)
def test_prefill_in_chunks_changes_nothing(name: str, units: str) -> None:
    model, schedule = case(name, units)
    prompt, whole = decoded(name, units)
    for chunk_size in (1, 5):
        chunked = run(model.gated, prompt, schedule, chunk_size, new_tokens=6)
        assert ids_of(chunked) == ids_of(whole[:6])
        for ours, theirs in zip(chunked, whole[:6], strict=True):
            assert abs(ours.logprob - theirs.logprob) < TOLERANCE


@family_and_units
def test_one_pass_scoring_equals_decoding_token_by_token(name: str, units: str) -> None:
    model, schedule = case(name, units)
    prompt, tokens = decoded(name, units)
    (scores,) = score(model.gated, [Document(prompt, ids_of(tokens))], schedule)
    ours = torch.tensor([token.logprob for token in tokens], dtype=torch.float64)
    assert (ours - scores.log_probs).abs().max() < TOLERANCE
    states = Scorer(model.gated, [Document(prompt, ids_of(tokens))]).states(schedule)
    assert top_choices(model.gated, states).tolist() == [token.top_id for token in tokens]


@one_kind_of_each_family(2)
def test_a_scorer_that_reuses_prompts_and_first_layers_equals_scoring_from_scratch(
    name: str, units: str
) -> None:
    model, decaying = case(name, units)
    documents = [
        Document(random_ids(11, seed=5), random_ids(17, seed=6)),
        Document(random_ids(3, seed=7), random_ids(9, seed=8)),
        Document(random_ids(20, seed=9), [7]),
    ]
    layers = model.gated.num_layers
    late = DepthSchedule(layers, 0.9, 0, 4, 2, ("5", "4"))
    tried = [decaying, DepthSchedule.full(layers), replace(decaying, start=6), decaying, late]
    expected = [score(model.gated, documents, schedule) for schedule in tried]
    scorer = Scorer(model.gated, documents)
    for remembered, kept in (
        (None, ()),
        (DepthSchedule.full(layers), (0, 3)),
        (decaying, range(layers - 1)),
        (late, (2, 4, layers - 1)),
    ):
        if remembered is not None:
            scorer.remember(remembered, kept)
        for schedule, scores in zip(tried, expected, strict=True):
            for ours, theirs in zip(scorer.score(schedule), scores, strict=True):
                assert (ours.log_probs - theirs.log_probs).abs().max() < TOLERANCE


@one_kind_of_each_family(3)
def test_scoring_a_batch_of_unequal_documents_equals_scoring_each(name: str, units: str) -> None:
    model, schedule = case(name, units)
    documents = [
        Document(random_ids(prompt, seed=prompt), random_ids(response, seed=100 + response))
        for prompt, response in ((3, 30), (19, 1), (11, 12), (26, 21))
    ]
    batch = score(model.gated, documents, schedule)
    for document, scores in zip(documents, batch, strict=True):
        (alone,) = score(model.gated, [document], schedule)
        assert (alone.log_probs - scores.log_probs).abs().max() < TOLERANCE
        logits = model.reference.logits(
            [*document.prompt_ids, *document.response_ids[:-1]], len(document.prompt_ids), schedule
        )[len(document.prompt_ids) - 1 :]
        expected = log_probs(logits, list(document.response_ids))
        assert (expected - scores.log_probs).abs().max() < TOLERANCE


@one_kind_of_each_family(4)
def test_repair_makes_the_cache_equal_the_full_models(name: str, units: str) -> None:
    built, schedule = case(name, units)
    model = built.gated
    cache = model.new_cache()
    prompt = random_ids(PROMPT_LEN, seed=4)
    for chunk in prefill(model, cache, prompt):
        last = chunk.hidden[-1]
    sampler = Sampler(GREEDY)
    tokens = list(
        decode(
            model,
            cache,
            model.logits(last),
            schedule,
            sampler,
            prompt_ids=prompt,
            max_tokens=NEW_TOKENS,
        )
    )
    held = [*prompt, *ids_of(tokens)[:-1]]
    assert cache.is_ragged == (units != "planes")  # without low planes no key is missing
    assert cache.position == len(held)
    assert cache.full_length < cache.position

    cache.crop(cache.full_length)
    for _ in prefill(model, cache, held[cache.position :], chunk_size=6):
        pass

    plain = model.new_cache()
    for _ in prefill(model, plain, held):
        pass
    assert not cache.is_ragged
    assert cache.position == cache.full_length == plain.position
    for layer in range(model.num_layers):
        for ours, expected in zip(
            cache.keys_and_values(layer), plain.keys_and_values(layer), strict=True
        ):
            assert ours.shape == expected.shape
            assert (ours - expected).abs().max() < TOLERANCE


@one_kind_of_each_family(0)
def test_the_audit_counts_where_full_depth_agrees(name: str, units: str) -> None:
    model, schedule = case(name, units)
    prompt, tokens = decoded(name, units)
    engine = Engine(model.gated)
    replayed = tokens_of_engine(engine, prompt, schedule)
    assert replayed == ids_of(tokens)
    full = model.reference.logits(
        [*prompt, *ids_of(tokens)[:-1]], PROMPT_LEN, DepthSchedule.full(model.gated.num_layers)
    ).argmax(-1)[PROMPT_LEN - 1 :]
    below = [token for token in tokens if token.depth < model.gated.num_layers]
    agreement = engine.repair()
    assert agreement.compared == len(below) > 0
    assert agreement.agreed == sum(token.top_id == int(full[token.step]) for token in below)
    if units not in ("sublayers", *NESTED):  # those may be mild enough to agree everywhere
        assert agreement.agreed < agreement.compared


def tokens_of_engine(engine: Engine, prompt: list[int], schedule: DepthSchedule) -> list[int]:
    reply = engine.stream_ids(prompt, schedule=schedule, sampling=GREEDY, max_tokens=NEW_TOKENS)
    for _ in reply:
        pass
    return ids_of(reply.tokens)


@some_families
def test_a_checkpoint_on_disk_loads_and_computes_the_same(name: str, tmp_path: Path) -> None:
    random_model(CONFIGS[name], "eager").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    ids = torch.tensor([random_ids(20)])
    assert torch.equal(loaded.hidden_states(ids), tiny(name).gated.hidden_states(ids))
    assert loaded.weight_bytes == tiny(name).gated.weight_bytes


def test_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    random_model(CONFIGS["gpt2"], "eager").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 256, 256)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(tmp_path)).num_layers == 8


@settings(max_examples=12, deadline=None)
@given(st.data(), st.sampled_from([0.8, 0.93, 1e-9]), st.integers(0, 5))
def test_any_mix_of_units_decodes_and_scores_as_the_reference(
    data: st.DataObject, alpha: float, start: int
) -> None:
    model = tiny("llama", nested=True)
    weights = model.gated.weight_bytes
    order = data.draw(any_order(weights, 1, 2))
    schedule = DepthSchedule(LAYERS, alpha, start, 1, 2, order, weights.weights(order))
    prompt, reply = random_ids(9, seed=1), random_ids(16, seed=2)
    expected = log_probs(
        model.reference.logits([*prompt, *reply[:-1]], len(prompt), schedule)[len(prompt) - 1 :],
        reply,
    )
    cache = model.gated.new_cache()
    for chunk in prefill(model.gated, cache, prompt):
        rows = [model.gated.logits(chunk.hidden[-1])]
    for step, token_id in enumerate(reply[:-1], start=1):
        rows.append(decode_step(model.gated, cache, token_id, schedule.dropped(step)))
    assert (log_probs(torch.stack(rows), reply) - expected).abs().max() < TOLERANCE
    (scores,) = score(model.gated, [Document(prompt, reply)], schedule)
    assert (scores.log_probs - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", [MixtralConfig, Qwen3MoeConfig])
def test_experts_of_any_size_run_in_bfloat16(kind: Any, tmp_path: Path) -> None:
    """Torch's grouped product takes rows of whole 16 bytes only."""
    sizes = {"hidden_size": 36, "intermediate_size": 52, "moe_intermediate_size": 52}
    config = CONFIGS["mixtral" if kind is MixtralConfig else "qwen3_moe"].to_dict() | sizes
    plain = random_model(kind.from_dict(config), "eager")
    plain.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    ids = torch.tensor([random_ids(12)])
    with torch.inference_mode():
        expected = plain(ids).logits[0]
    model = load_model(str(tmp_path), dtype="bfloat16", device="cpu")
    found = model.logits(model.hidden_states(ids)[0]).float()
    off = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert off.median() < 0.1  # where rounding changes the choice of experts, it is more
