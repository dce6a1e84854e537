"""/v1/completions: a text goes on, with its log-probabilities, also those of the prompt."""

from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from d3cli.model.model import LoadedModel
from d3cli.serve.scores import IMPOSSIBLE
from d3cli.text.control_tokens import skipped_tokens
from d3cli.text.tokens import encode_raw
from tests.serve.conftest import TEXT, alone, refusal
from tests.serve.test_chat import streamed

PROMPT = "Once upon a time there was a fox called"


def ask(client: TestClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 8} | fields
    response = client.post(TEXT, json=body)
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()
    return data


def test_a_text_goes_on_as_with_generate_raw(client: TestClient, builtin: LoadedModel) -> None:
    from d3cli.decode.session import Engine

    reply = Engine(builtin).stream(PROMPT, raw=True, max_tokens=8)
    for _ in reply:
        pass
    data = ask(client)
    assert data["object"] == "text_completion"
    assert data["choices"][0]["text"] == reply.text
    assert data["choices"][0]["finish_reason"] == "length"
    ids = encode_raw(builtin.tokenizer, PROMPT)
    for prompt in (ids, [ids], [PROMPT]):
        assert ask(client, prompt=prompt)["choices"][0]["text"] == reply.text
    chunks = streamed(client, {"model": "demo", "prompt": PROMPT, "max_tokens": 8}, TEXT)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == reply.text


def test_openais_limit_holds_without_one(client: TestClient) -> None:
    data = ask(client, max_tokens=None, prompt="Tell me a story about a fox.")
    assert data["usage"]["completion_tokens"] <= 16


def test_a_token_that_is_ruled_out_has_a_log_probability_that_json_can_hold(
    client: TestClient, builtin: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = encode_raw(builtin.tokenizer, PROMPT)
    own = LoadedModel.logits

    def without(model: LoadedModel, states: torch.Tensor) -> torch.Tensor:
        logits = own(model, states).clone()
        logits[:, ids[-1]] = -torch.inf
        return logits

    monkeypatch.setattr(LoadedModel, "logits", without)
    scores = ask(client, echo=True, logprobs=2, max_tokens=0)["choices"][0]["logprobs"]
    assert scores["token_logprobs"][-1] == IMPOSSIBLE
    assert IMPOSSIBLE < scores["token_logprobs"][1] < 0


def test_the_prompt_is_scored_at_full_depth(client: TestClient, builtin: LoadedModel) -> None:
    data = ask(client, echo=True, logprobs=2, max_tokens=0)
    choice = data["choices"][0]
    assert choice["text"] == PROMPT
    assert data["usage"]["completion_tokens"] == 0
    scores = choice["logprobs"]
    ids = encode_raw(builtin.tokenizer, PROMPT)
    hidden = builtin.hidden_states(torch.tensor([ids]))
    expected = builtin.logits(hidden[0]).log_softmax(-1)
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    wanted = [float(expected[at, id_]) for at, id_ in enumerate(ids[1:])]
    assert scores["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-5)
    assert "".join(scores["tokens"]) == PROMPT
    for at, token in enumerate(scores["tokens"]):
        assert PROMPT[scores["text_offset"][at] :].startswith(token)
    best = [max(one.values()) for one in scores["top_logprobs"][1:]]
    assert best == pytest.approx(expected.max(-1).values[:-1].tolist(), abs=1e-5)


def test_echo_puts_prompt_and_reply_together(client: TestClient) -> None:
    reply = ask(client, logprobs=1)["choices"][0]
    both = ask(client, echo=True, logprobs=1)["choices"][0]
    assert both["text"] == PROMPT + reply["text"]
    count = len(reply["logprobs"]["tokens"])
    assert both["logprobs"]["tokens"][-count:] == reply["logprobs"]["tokens"]
    assert both["logprobs"]["text_offset"][-count] == len(PROMPT)
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 8, "echo": True, "logprobs": 1}
    chunks = [chunk["choices"][0] for chunk in streamed(client, body, TEXT)]
    assert "".join(chunk["text"] for chunk in chunks) == both["text"]
    tokens = [token for one in chunks if one["logprobs"] for token in one["logprobs"]["tokens"]]
    assert tokens == both["logprobs"]["tokens"]


@pytest.mark.parametrize("echo", [False, True])
def test_offsets_count_from_the_beginning_of_the_prompt(client: TestClient, echo: bool) -> None:
    """As OpenAI's do, with or without the prompt in the text."""
    fields = {"logprobs": 0, "echo": echo}
    choice = ask(client, **fields)["choices"][0]
    whole = choice["text"] if echo else PROMPT + choice["text"]
    scores = choice["logprobs"]
    assert scores["text_offset"][0] == (0 if echo else len(PROMPT))
    for token, offset in zip(scores["tokens"], scores["text_offset"], strict=True):
        assert whole[offset:].startswith(token)
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 8} | fields
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed(client, body, TEXT)]
    offsets = [offset for part in parts if part for offset in part["text_offset"]]
    assert offsets == scores["text_offset"]


@pytest.mark.parametrize("inside", [0, 1])
def test_tokens_of_a_stop_string_have_no_log_probabilities(client: TestClient, inside: int) -> None:
    """A token that begins before the stop string is whole; those after it are left out."""
    fields = {"logprobs": 1, "max_tokens": 20}
    whole = ask(client, **fields)["choices"][0]
    tokens, text = whole["logprobs"]["tokens"], whole["text"]
    starts = [offset - len(PROMPT) for offset in whole["logprobs"]["text_offset"]]
    at = next(
        at
        for at in range(3, len(tokens) - 2)
        if len(tokens[at]) > 2
        and text.find(text[starts[at] + inside : starts[at + 2]]) == starts[at] + inside
    )
    stop = text[starts[at] + inside : starts[at + 2]]  # of two tokens, so that one is held back
    cut = ask(client, **fields, stop=stop)["choices"][0]
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == text[: text.find(stop)]
    assert cut["logprobs"]["tokens"] == tokens[: at + inside]
    assert cut["logprobs"]["token_logprobs"] == whole["logprobs"]["token_logprobs"][: at + inside]
    body = {"model": "demo", "prompt": PROMPT, "stop": stop} | fields
    sent, told = "", list[str]()
    for chunk in (chunk["choices"][0] for chunk in streamed(client, body, TEXT)):
        sent += chunk["text"]
        told += chunk["logprobs"]["tokens"] if chunk["logprobs"] else []
        assert len("".join(told[:-1])) <= len(sent) <= len("".join(told))
    assert (sent, told) == (cut["text"], cut["logprobs"]["tokens"])


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": ["a", "b"]}, "prompt", "one request for each"),
        ({"prompt": [1 << 40]}, "prompt", "token"),
        ({"prompt": [-1]}, "prompt", "token"),
        ({"prompt": [[1 << 40, 3]], "echo": True, "logprobs": 1}, "prompt", "token"),
        ({"prompt": 5}, "prompt", ""),
        ({"best_of": 2}, "best_of", ""),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"max_tokens": 0}, "max_tokens", "echo"),
        ({"logprobs": 6}, "logprobs", "5"),
        ({"messages": []}, "messages", "unrecognized"),
    ],
)
def test_a_refusal_names_the_field(
    client: TestClient, fields: dict[str, Any], param: str, word: str
) -> None:
    body = {"model": "demo", "prompt": PROMPT} | fields
    refusal(client.post(TEXT, json=body), 400, param, word)


def test_a_chat_is_not_changed_by_a_text(client: TestClient, builtin: LoadedModel) -> None:
    from tests.serve.conftest import CHAT, STORY, chat, user

    ask(client, prompt=STORY)
    data = client.post(CHAT, json=chat()).json()
    expected = alone(builtin, user(STORY), max_tokens=12)
    assert data["choices"][0]["message"]["content"] == expected


def test_special_tokens_among_the_most_likely_have_their_names(
    client: TestClient, builtin: LoadedModel
) -> None:
    data = ask(client, echo=True, logprobs=5, max_tokens=0)
    named = skipped_tokens(builtin.tokenizer)
    for most_likely in data["choices"][0]["logprobs"]["top_logprobs"][1:]:
        assert "" not in most_likely
    hidden = builtin.hidden_states(torch.tensor([encode_raw(builtin.tokenizer, PROMPT)]))
    best = builtin.logits(hidden[0])[:-1].topk(5).indices.unique().tolist()
    assert set(best) & set(named.values())
