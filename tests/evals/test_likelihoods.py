"""Log-likelihoods at a schedule equal those of the slow reference, and decay changes them."""

import pytest
import torch

from d3cli.base.errors import GenerationError, PromptError
from d3cli.depth.prompt_order import MIN_POSITIONS, PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.evals.likelihoods import (
    Likelihood,
    fit_context,
    log_likelihoods,
    rolling_windows,
    runs_at_full_depth,
)
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from tests.families import LAYERS, case, random_ids, tiny

FULL = DepthSchedule.full(LAYERS)
# Of unequal lengths, so that a batch is padded on both sides; one has a single token.
DOCUMENTS = [
    Document(random_ids(9, 1), random_ids(14, 2)),
    Document(random_ids(1, 3), random_ids(6, 4)),
    Document(random_ids(17, 5), random_ids(1, 6)),
    Document(random_ids(4, 7), random_ids(11, 8)),
]


def likelihoods(
    model: LoadedModel,
    documents: list[Document],
    schedule: DepthSchedule | PromptSchedule,
    rows: int | None = None,
) -> list[Likelihood]:
    found: dict[int, Likelihood] = {}
    for batch in log_likelihoods(model, documents, schedule, rows):
        assert rows is None or len(batch) <= rows
        found |= batch
    return [found[number] for number in range(len(documents))]


@pytest.mark.parametrize(
    ("name", "units"), [("llama", "layers"), ("qwen3-sliding", "sublayers"), ("gpt2", "static")]
)
@pytest.mark.parametrize("rows", [None, 1, 3])
def test_they_equal_the_reference_s(name: str, units: str, rows: int | None) -> None:
    model, schedule = case(name, units)
    found = likelihoods(model.gated, DOCUMENTS, schedule, rows)
    for document, one in zip(DOCUMENTS, found, strict=True):
        prompt_len, ids = len(document.prompt_ids), torch.tensor(document.response_ids)
        sequence = [*document.prompt_ids, *document.response_ids[:-1]]
        logits = model.reference.logits(sequence, prompt_len, schedule)[prompt_len - 1 :]
        log_probs = logits.double().log_softmax(dim=-1).gather(-1, ids[:, None])
        assert one.log_prob == pytest.approx(float(log_probs.sum()), abs=1e-4)
        assert one.is_greedy == bool((logits.argmax(dim=-1) == ids).all())
        assert one.tokens == len(ids)
        assert one.layers == pytest.approx(sum(schedule.depth(t) for t in range(len(ids))))


def test_decay_changes_all_but_the_first_token() -> None:
    model, schedule = case("llama", "static")
    full = likelihoods(model.gated, DOCUMENTS, FULL)
    decayed = likelihoods(model.gated, DOCUMENTS, schedule)
    changed = [
        abs(a.log_prob - b.log_prob) > 0.01 and a.layers > b.layers
        for a, b in zip(full, decayed, strict=True)
    ]
    assert changed == [True, True, False, True]  # the third has a single token
    assert decayed[2].log_prob == pytest.approx(full[2].log_prob, abs=1e-5)


def test_a_greedy_reply_is_greedy_at_its_own_schedule_only() -> None:
    model, schedule = case("llama", "layers")
    prompt = random_ids(9, 1)
    reply, _ = model.reference.generate(prompt, schedule, 16)
    document = Document(prompt, reply)
    assert likelihoods(model.gated, [document], schedule)[0].is_greedy
    assert not likelihoods(model.gated, [document], FULL)[0].is_greedy
    other = Document(prompt, [*reply[:-1], (reply[-1] + 1) % 100])
    assert not likelihoods(model.gated, [other], schedule)[0].is_greedy


def test_a_prompt_decides_the_order_of_its_continuation() -> None:
    model = tiny("llama").gated
    schedule = model.schedule(0.8, core_first=1, core_last=1)
    assert isinstance(schedule, PromptSchedule)
    short = Document(random_ids(MIN_POSITIONS - 1), random_ids(9, 2))
    long = Document(random_ids(MIN_POSITIONS), random_ids(9, 2))
    assert runs_at_full_depth(short, schedule) and not runs_at_full_depth(long, schedule)
    assert not runs_at_full_depth(short, FULL)
    found = likelihoods(model, [short, long], schedule)
    full = likelihoods(model, [short, long], FULL)
    assert found[0].log_prob == pytest.approx(full[0].log_prob, abs=1e-5)
    assert found[0].layers == 9 * LAYERS
    assert abs(found[1].log_prob - full[1].log_prob) > 0.01
    assert found[1].layers < 9 * LAYERS


def test_a_long_context_is_cut_at_its_beginning() -> None:
    assert fit_context([1, 2, 3], [4, 5], 4) == (Document([1, 2, 3], [4, 5]), 0)
    assert fit_context([1, 2, 3], [4, 5], 3) == (Document([2, 3], [4, 5]), 1)
    assert fit_context([1, 2, 3], [4, 5], 2) == (Document([3], [4, 5]), 2)
    with pytest.raises(PromptError, match="has 3 tokens, but the model's context holds 2"):
        fit_context([1], [2, 3, 4], 2)


def test_windows_predict_each_token_once_with_as_much_context_as_fits() -> None:
    assert rolling_windows([], 0, 4) == []
    assert rolling_windows([1, 2, 3], 0, 4) == [Document([0], [1, 2, 3])]
    assert rolling_windows([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0, 4) == [
        Document([0], [1, 2, 3, 4]),
        Document([4], [5, 6, 7, 8]),
        Document([6, 7, 8], [9, 10]),
    ]
    assert rolling_windows(list(range(1, 9)), 0, 4)[1] == Document([4], [5, 6, 7, 8])


def test_logits_that_are_not_finite_are_no_likelihoods(monkeypatch: pytest.MonkeyPatch) -> None:
    """As numbers they would be a score: the harness would count each question's first choice."""
    own = LoadedModel.logits
    monkeypatch.setattr(LoadedModel, "logits", lambda *given: own(*given) * torch.nan)
    with pytest.raises(GenerationError, match="log-probabilities are not finite"):
        likelihoods(tiny("llama").gated, DOCUMENTS, FULL)
