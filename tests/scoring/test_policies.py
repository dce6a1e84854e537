"""Rival policies on the engine: decoding and one-pass scores equal the slow reference."""

from collections.abc import Callable

import pytest
import torch

from d3cli.decode.loop import decode_step, prefill
from d3cli.depth.policies import early_exit, first_units, skipdecode, unified
from d3cli.depth.schedule import DepthSchedule
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.families import LAYERS, Tiny, random_ids, tiny, whole_layers
from tests.reference import skipped_by_early_exit, skipped_by_skipdecode, skipped_by_unified

PROMPT, NEW = 13, 20
TOLERANCE = 1e-5  # absolute, in log-probabilities
Skipped = Callable[[int], set[str]]  # the layers that token t skips


def policies(model: Tiny) -> dict[str, tuple[DepthSchedule, Skipped]]:
    """Each policy, and the reference's own formula for it."""
    weights = model.gated.weight_bytes
    constant = first_units(whole_layers(), 3)
    assert isinstance(constant, DepthSchedule)
    return {
        "unified": (unified(weights, 5), lambda t: skipped_by_unified(LAYERS, 5)),
        "early-exit": (early_exit(weights, 5), lambda t: skipped_by_early_exit(LAYERS, 5)),
        "skipdecode": (
            skipdecode(LAYERS, 7, 2, NEW),
            lambda t: skipped_by_skipdecode(LAYERS, 7, 2, NEW, t),
        ),
        "static": (constant, lambda t: {"2", "1", "5"}),
    }


@pytest.mark.parametrize("policy", ["unified", "early-exit", "skipdecode", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3-sliding", "gpt2", "opt-post-norm"])
def test_decoding_and_scoring_equal_the_reference(name: str, policy: str) -> None:
    model = tiny(name)
    schedule, skipped = policies(model)[policy]
    prompt, response = random_ids(PROMPT, seed=3), random_ids(NEW, seed=4)
    # Token t is predicted at position PROMPT + t - 1; the prompt and token 0 run all layers.
    nothing: list[set[str]] = [set()] * PROMPT
    by_position = nothing + [skipped(t) for t in range(1, NEW)]
    logits = model.reference.logits_without([*prompt, *response[:-1]], by_position)
    expected = logits[PROMPT - 1 :].log_softmax(-1).double()  # [NEW, V]

    cache = model.gated.new_cache()
    for chunk in prefill(model.gated, cache, prompt):
        first = model.gated.logits(chunk.hidden[-1])
    rows = [first] + [
        decode_step(model.gated, cache, response[t - 1], schedule.dropped(t)) for t in range(1, NEW)
    ]
    decoded = torch.stack(rows).log_softmax(-1).double()
    assert (decoded - expected).abs().max() < TOLERANCE

    [scores] = score(model.gated, [Document(prompt, response)], schedule)
    chosen = expected.gather(-1, torch.tensor(response)[:, None])[:, 0]
    assert (scores.log_probs - chosen).abs().max() < TOLERANCE


def test_the_policies_differ_from_each_other_and_from_full_depth() -> None:
    model = tiny("llama")
    document = Document(random_ids(PROMPT, seed=3), random_ids(NEW, seed=4))
    schedules = [DepthSchedule.full(LAYERS), *(one for one, _ in policies(model).values())]
    found = [score(model.gated, [document], one)[0].log_probs for one in schedules]
    for number, one in enumerate(found):
        for other in found[:number]:
            assert (one - other).abs().max() > 0.01
