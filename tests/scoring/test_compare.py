"""A schedule and full depth compared token by token."""

import pytest
import torch

from d3cli.decode.loop import decode_step, prefill
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.compare import compare
from d3cli.scoring.documents import Document
from tests.families import case, random_ids


def logits_step_by_step(
    model: LoadedModel, document: Document, schedule: DepthSchedule
) -> torch.Tensor:
    """Logits ``[N, V]`` from token-by-token decoding."""
    cache = model.new_cache()
    for chunk in prefill(model, cache, document.prompt_ids):
        last = model.logits(chunk.hidden[-1])
    rows = [last]
    for step, token in enumerate(document.response_ids[:-1], start=1):
        rows.append(decode_step(model, cache, token, schedule.dropped(step)))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["layers", "sublayers", "all kinds"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@torch.inference_mode()
def test_every_figure_equals_that_of_decoding_token_by_token(name: str, kind: str) -> None:
    built, schedule = case(name, kind)
    model, full = built.gated, DepthSchedule.full(built.gated.num_layers)
    documents = [
        Document(random_ids(9), random_ids(14, seed=1)),
        Document(random_ids(4, seed=2), random_ids(20, seed=3)),
    ]
    found, same = compare(model, documents, [schedule, full])
    assert all(float(c.kl.max()) < 1e-5 and bool(c.same_top.all()) for c in same)
    for document, comparison in zip(documents, found, strict=True):
        ids = torch.tensor(document.response_ids)[:, None]
        ours = logits_step_by_step(model, document, schedule).double().log_softmax(-1)
        theirs = logits_step_by_step(model, document, full).double().log_softmax(-1)
        picked = ours.gather(1, ids)
        torch.testing.assert_close(comparison.log_probs, picked[:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            comparison.full_log_probs, theirs.gather(1, ids)[:, 0], atol=1e-5, rtol=0
        )
        kl = (theirs.exp() * (theirs - ours)).sum(-1)
        torch.testing.assert_close(comparison.kl, kl, atol=1e-5, rtol=0)
        assert comparison.ranks.tolist() == (1 + (ours > picked).sum(-1)).tolist()
        assert comparison.same_top.tolist() == (ours.argmax(-1) == theirs.argmax(-1)).tolist()
        assert comparison.depths.tolist() == [schedule.depth(t) for t in range(len(ids))]
    assert not all(bool(c.same_top.all()) for c in found)  # otherwise the test shows nothing
