"""Log-probabilities of a prompt's own tokens."""

import math

import pytest
import torch

from d3cli.base.errors import GenerationError
from d3cli.model.model import LoadedModel
from d3cli.scoring.prompt import PromptToken, score_prompt
from tests.families import random_ids, tiny

IDS = random_ids(12, 1)


def scored(model: LoadedModel, most_likely: int = 0) -> list[PromptToken]:
    return [token for some in score_prompt(model, IDS, most_likely) for token in some]


def test_they_are_those_of_one_pass_over_the_prompt() -> None:
    made = tiny("llama")
    found = scored(made.gated)
    with torch.no_grad():
        log_probs = made.plain(torch.tensor([IDS])).logits[0].double().log_softmax(dim=-1)
    assert [token.token_id for token in found] == IDS
    assert found[0].logprob is None
    expected = [float(log_probs[at, id_]) for at, id_ in enumerate(IDS[1:])]
    assert [token.logprob for token in found[1:]] == pytest.approx(expected, abs=1e-4)


def model_with_logits(monkeypatch: pytest.MonkeyPatch, token_id: int, value: float) -> LoadedModel:
    """A model whose logit of one token is always the same."""
    own = LoadedModel.logits

    def with_value(model: LoadedModel, states: torch.Tensor) -> torch.Tensor:
        logits = own(model, states).clone()
        logits[:, token_id] = value
        return logits

    monkeypatch.setattr(LoadedModel, "logits", with_value)
    return tiny("llama").gated


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GenerationError, match="log-probabilities are not finite"):
        scored(model_with_logits(monkeypatch, 0, value))


def test_a_token_may_be_ruled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scored(model_with_logits(monkeypatch, IDS[5], -math.inf))
    assert {token.token_id for token in found if token.logprob == -math.inf} == {IDS[5]}
