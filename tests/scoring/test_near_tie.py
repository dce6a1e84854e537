"""What rounding changes at a token: by the keys and values before it, and by passes of any size."""

import pytest

from d3cli.decode.loop import decode_step, prefill
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.model.load import load_model
from d3cli.scoring.near_tie import LAST, gap_and_rounding


@pytest.mark.parametrize("length", [5, LAST + 9])
def test_it_counts_what_steps_before_the_token_rounded(length: int) -> None:
    model = load_model(dtype="bfloat16", device="cpu")
    ids = model.tokenizer("Tell me a story about a fox. " * 8)["input_ids"][:length]
    last = max(1, length - LAST)
    cache = model.new_cache()
    for _ in prefill(model, cache, ids[:last]):
        pass
    for token in ids[last:]:
        by_steps = decode_step(model, cache, token, ()).clone()
    cache.crop(0)
    for _ in prefill(model, cache, ids[:-1]):
        pass
    read_at_once = decode_step(model, cache, ids[-1], ())
    sampler = Sampler(SamplingParams(), model.device)
    best, second = by_steps.topk(2).indices.tolist()
    _, rounding = gap_and_rounding(model, sampler, ids, best, second)
    assert rounding >= float((read_at_once - by_steps).abs().max())


def test_in_float32_it_is_next_to_nothing() -> None:
    model = load_model(dtype="float32", device="cpu")
    ids = model.tokenizer("Tell me a story about a fox.")["input_ids"]
    sampler = Sampler(SamplingParams(), model.device)
    assert gap_and_rounding(model, sampler, ids, 5, 5)[0] == 0
    assert gap_and_rounding(model, sampler, ids, 5, 6)[1] < 1e-3
