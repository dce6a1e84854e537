"""What scoring refuses, and the perplexity of the trained model."""

import json

import pytest

from d3cli.base.errors import PromptError
from d3cli.base.settings import BUILTIN
from d3cli.files.names import find_model
from d3cli.model.load import load_model
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import perplexity, score
from d3cli.text.chat_template import encode_chat
from tests.families import random_ids, tiny, whole_layers


@pytest.mark.parametrize(
    "document", [Document([], [5]), Document([5], []), Document([5] * 200, [5] * 58)]
)
def test_documents_that_cannot_be_scored_are_refused(document: Document) -> None:
    with pytest.raises(PromptError):
        score(tiny("llama").gated, [Document([5], [6]), document], whole_layers())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_documents_that_just_fit_the_context_are_scored(name: str) -> None:
    documents = [
        Document(random_ids(200), random_ids(57)),
        Document(random_ids(3), random_ids(254, seed=1)),
    ]
    scores = score(tiny(name).gated, documents, whole_layers())
    assert [len(s.log_probs) for s in scores] == [57, 254]
    assert all(bool(s.log_probs.isfinite().all()) for s in scores)


def test_no_documents_have_no_scores() -> None:
    assert score(tiny("llama").gated, [], whole_layers()) == []


def test_perplexity_of_the_trained_model_rises_as_depth_falls() -> None:
    model = load_model(dtype="float32", device="cpu")
    rows = (find_model(BUILTIN).path / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    documents = []
    for row in rows[:12]:
        *messages, answer = json.loads(row)["messages"]
        response = model.tokenizer(answer["content"], add_special_tokens=False)["input_ids"]
        documents.append(
            Document(encode_chat(model.tokenizer, messages, model.text.renderer), response)
        )
    depths = [model.schedule(alpha, start=0) for alpha in ("off", 0.97, 1e-9)]
    found = [perplexity(score(model, documents, schedule)) for schedule in depths]
    assert found == sorted(found)
    assert found[0] < found[-1]
    assert found[0] < 10  # of about 2,000 possible tokens: the model has learned its world
