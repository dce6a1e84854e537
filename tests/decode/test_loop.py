"""The decode loop and logits that are not finite."""

import pytest
import torch

from d3cli.base.errors import GenerationError
from d3cli.decode.loop import decode, prefill
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from tests.families import tiny, whole_layers


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_the_step(bad: float) -> None:
    model = tiny("llama").gated
    cache = model.new_cache()
    for chunk in prefill(model, cache, [3, 4, 5]):
        logits = model.logits(chunk.hidden[-1]).clone()
    logits[7] = bad
    tokens = decode(
        model,
        cache,
        logits,
        whole_layers(),
        Sampler(SamplingParams()),
        prompt_ids=[3, 4, 5],
        max_tokens=4,
    )
    with pytest.raises(GenerationError, match="step 0"):
        next(tokens)


def test_masked_logits_of_minus_infinity_are_fine() -> None:
    model = tiny("llama").gated
    cache = model.new_cache()
    for chunk in prefill(model, cache, [3, 4, 5]):
        logits = model.logits(chunk.hidden[-1]).clone()
    logits[logits.topk(5).indices] = -torch.inf
    sampler = Sampler(SamplingParams())
    tokens = decode(
        model, cache, logits, whole_layers(), sampler, prompt_ids=[3, 4, 5], max_tokens=1
    )
    assert next(tokens).token_id not in logits.isinf().nonzero().flatten().tolist()
