"""Decay on a real model: decoding equals the reference, and one-pass scoring equals decoding."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from d3cli.decode.reply import Reply
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.schedule import DepthSchedule, schedule_of
from d3cli.depth.units import UnitKind
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.decode.replies import greedy, ids
from tests.real.conftest import encode, the_rest
from tests.reference import Reference

pytestmark = the_rest

# Of log-probabilities. Thirty layers in float32, summed in another order, differ by up to 2e-5 at
# full depth and by 1e-4 with layers missing; in float64 by 2e-7.
TOLERANCE = 2e-4
ORDERS = {
    "layers": ("10", "25", "4", "17", "21", "8"),
    "sublayers": ("12.attn", "20.mlp", "25.attn", "4.attn", "4.mlp", "10.mlp", "17.attn", "22.mlp"),
}
kinds = pytest.mark.parametrize("kind", ORDERS)


def steep(model: LoadedModel, kind: str) -> DepthSchedule:
    """Drops a unit every few tokens, so that a short reply has many depths."""
    return schedule_of(model.weight_bytes, ORDERS[kind], alpha=0.99, start=2)


def sampled(model: LoadedModel, question: str, schedule: DepthSchedule, tokens: int) -> Reply:
    """A finished reply at temperature 1: it goes on where a greedy one would repeat itself."""
    reply = Engine(model).stream_ids(
        encode(model.tokenizer, question),
        schedule=schedule,
        sampling=SamplingParams(temperature=1.0, seed=3),
        max_tokens=tokens,
        ends=(),
    )
    ids(reply)
    return reply


def log_probs(reply: Reply) -> Tensor:
    return torch.tensor([token.logprob for token in reply.tokens], dtype=torch.float64)


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@kinds
def test_decoding_equals_the_slow_reference(
    real: LoadedModel, reference: Reference, kind: str
) -> None:
    prompt, new_tokens = encode(real.tokenizer, "Why is the sky blue?"), 24
    schedule = steep(real, kind)
    reply = greedy(Engine(real), prompt, schedule, max_tokens=new_tokens, ends=())
    expected, logits = reference.generate(prompt, schedule, new_tokens)
    assert ids(reply) == expected
    assert len({token.depth for token in reply.tokens}) >= len(schedule.skip_order)
    theirs = logits.double().log_softmax(-1).gather(-1, torch.tensor(expected)[:, None])[:, 0]
    assert largest_difference([log_probs(reply)], [theirs]) < TOLERANCE


@pytest.mark.parametrize("kind", ["layer", "sublayer"])
def test_decoding_by_the_prompts_order_equals_the_slow_reference(
    real: LoadedModel, reference: Reference, kind: UnitKind
) -> None:
    prompt, new_tokens = encode(real.tokenizer, "Tell me a story about a fox."), 16
    asked = real.schedule(0.99, start=2, units=kind)
    assert isinstance(asked, PromptSchedule)
    reply = greedy(Engine(real), prompt, asked, max_tokens=new_tokens, ends=())
    schedule = asked.ordered(influence(reference, prompt, kind))
    expected, _ = reference.generate(prompt, schedule, new_tokens)
    assert ids(reply) == expected
    assert reply.schedule == schedule
    (scores,) = score(real, [Document(prompt, expected)], asked)
    assert largest_difference([scores.log_probs], [log_probs(reply)]) < TOLERANCE


def influence(reference: Reference, prompt: list[int], kind: UnitKind) -> dict[str, float]:
    """Of each unit: one minus the cosine of the residual stream before and after it.

    It is measured at every fourth position for layers, and at every eighth for sublayers. In this
    family a norm reads the stream before each attention, before each MLP and at the end.
    """
    every = {"layer": 4, "sublayer": 8}[kind]
    stream: list[Tensor] = []  # [S / every, H] each
    norms = [
        norm
        for layer in reference.layers
        for norm in (layer.input_layernorm, layer.post_attention_layernorm)
    ]
    handles = [
        norm.register_forward_pre_hook(
            lambda _, args: stream.append(args[0][0, every - 1 :: every].double())
        )
        for norm in (*norms, reference.model.model.norm)
    ]
    reference.logits(prompt, len(prompt), DepthSchedule.full(30))
    for handle in handles:
        handle.remove()
    names = [
        f"{layer}.{part}" for layer in range(len(reference.layers)) for part in ("attn", "mlp")
    ]
    if kind == "layer":
        stream, names = stream[::2], list(map(str, range(len(reference.layers))))
    changes = [1 - torch.cosine_similarity(*pair, dim=-1).mean() for pair in pairwise(stream)]
    return dict(zip(names, map(float, changes), strict=True))


@kinds
def test_one_pass_scoring_equals_decoding_token_by_token(real: LoadedModel, kind: str) -> None:
    """Also in a batch of unequal prompts and replies."""
    schedule = steep(real, kind)
    replies = [
        sampled(real, "Why is the sky blue?", schedule, 120),
        sampled(real, "Write a short poem about the sea, and one about the wind.", schedule, 40),
    ]
    documents = [
        Document(reply.prompt_ids, [token.token_id for token in reply.tokens]) for reply in replies
    ]
    expected = [log_probs(reply) for reply in replies]
    alone = [score(real, [document], schedule)[0].log_probs for document in documents]
    together = [found.log_probs for found in score(real, documents, schedule)]
    assert largest_difference(alone, expected) < TOLERANCE
    assert largest_difference(together, expected) < TOLERANCE
