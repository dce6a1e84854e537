"""/v1/chat/completions: replies are those of `d3 generate`, in OpenAI's form."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from d3cli.model.model import LoadedModel
from d3cli.text.reasoning import split_reasoning
from tests.serve.conftest import (
    CHAT,
    STORY,
    TEXT,
    Connect,
    alone,
    chat,
    new_service,
    refusal,
    user,
)


def said(response: Any) -> str:
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def streamed(client: TestClient, body: dict[str, Any], path: str = CHAT) -> list[dict[str, Any]]:
    """The chunks of a stream, which ends as OpenAI's do."""
    response = client.post(path, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_reply_has_openais_form(client: TestClient) -> None:
    data = client.post(CHAT, json=chat("What is 27 + 45?", max_tokens=60)).json()
    assert data["object"] == "chat.completion"
    assert data["model"] == "demo"
    (choice,) = data["choices"]
    assert set(choice["message"]) == {"role", "content", "refusal"}
    assert choice["message"]["role"] == "assistant"
    assert "72" in choice["message"]["content"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = data["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert {"depth", "byte_ratio", "ttft_s", "acceptance"} <= set(usage["d3"])


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"alpha": "off"},
        {"alpha": 0.9},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 0.9, "seed": 5, "top_p": 0.8, "top_k": 20, "alpha": 0.97},
        {"repetition_penalty": 1.3},
    ],
)
def test_it_is_the_reply_of_generate(
    client: TestClient, builtin: LoadedModel, given: dict[str, Any]
) -> None:
    expected = alone(builtin, user(STORY), max_tokens=12, **given)
    assert said(client.post(CHAT, json=chat(**given))) == expected


def test_depth_is_a_dial_of_each_request(client: TestClient) -> None:
    figures = [
        client.post(CHAT, json=chat(max_tokens=30, **given)).json()["usage"]["d3"]
        for given in ({"alpha": "off"}, {"alpha": 0.9, "start": 0})
    ]
    assert figures[0]["depth"] == figures[0]["num_layers"] == 16
    assert figures[1]["depth"] < 16
    assert figures[0]["byte_ratio"] == 1 < figures[1]["byte_ratio"]
    assert [one["source"] for one in figures] == ["off", "flags"]


def test_a_lossless_reply_says_what_was_accepted(client: TestClient, builtin: LoadedModel) -> None:
    text = "Tell me a story about a fox. " * 4
    body = chat(text, lossless="lookup", max_tokens=40)
    data = client.post(CHAT, json=body).json()
    full = alone(builtin, user(text), alpha="off", max_tokens=40)
    assert data["choices"][0]["message"]["content"] == full
    d3 = data["usage"]["d3"]
    assert d3["lossless"]["passes"] > 0
    assert d3["lossless"]["drafted"] > 0
    assert d3["acceptance"] == d3["lossless"]["accepted"] / d3["lossless"]["drafted"]


@pytest.mark.parametrize("sessions", [0, 3])
def test_conversations_that_alternate_reuse_their_caches_and_change_nothing(
    connect: Connect, builtin: LoadedModel, sessions: int
) -> None:
    service = new_service(builtin, sessions=sessions)
    client = connect(service)
    conversations = [user(STORY), user("Where does the owl live?"), user("What is 27 + 45?")]
    reused = 0
    for turn in range(3):
        for number, messages in enumerate(conversations):
            given: dict[str, Any] = {"temperature": 0.7, "seed": turn} if number == 1 else {}
            body = {"model": "demo", "messages": messages, "max_tokens": 10} | given
            response = client.post(CHAT, json=body)
            text = said(response)
            assert text == alone(builtin, messages, max_tokens=10, **given)
            reused += response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            messages += [{"role": "assistant", "content": text}, *user(f"And {turn}?")]
    assert (reused > 60) == bool(sessions)
    assert len(service.sessions) == sessions


def test_a_stream_is_the_whole_reply_in_pieces(client: TestClient) -> None:
    whole = said(client.post(CHAT, json=chat()))
    chunks = streamed(client, chat())
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == whole
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
    assert choices[-1]["delta"] == {}
    assert not any("usage" in chunk for chunk in chunks)


def test_the_document_names_both_forms_of_a_reply(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in (CHAT, TEXT):
        content = paths[path]["post"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/event-stream"}


def test_a_stream_ends_with_the_usage_if_asked(client: TestClient) -> None:
    *chunks, last = streamed(client, chat(stream_options={"include_usage": True}))
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 12
    assert last["usage"]["d3"]["ttft_s"] > 0


def test_stop_strings_end_a_reply_and_are_not_shown(client: TestClient) -> None:
    whole = said(client.post(CHAT, json=chat(max_tokens=40)))
    stop = whole.split()[8]
    for given in (stop, [stop], ["\x00", stop]):
        data = client.post(CHAT, json=chat(max_tokens=40, stop=given)).json()["choices"][0]
        assert data["message"]["content"] == whole[: whole.index(stop)]
        assert data["finish_reason"] == "stop"
    chunks = streamed(client, chat(max_tokens=40, stop=stop))
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == whole[: whole.index(stop)]


def test_log_probabilities_spell_the_reply(client: TestClient) -> None:
    body = chat(logprobs=True, top_logprobs=3, max_tokens=30)
    choice = client.post(CHAT, json=body).json()["choices"][0]
    items = choice["logprobs"]["content"]
    assert len(items) == 30
    spelled = bytes(byte for item in items for byte in item["bytes"])
    assert spelled.decode() == choice["message"]["content"]
    for item in items:
        assert item["logprob"] <= 0
        most = item["top_logprobs"]
        assert len(most) == 3
        assert most[0]["token"] == item["token"]  # the reply is greedy
        assert most[0]["logprob"] == item["logprob"]
        assert [one["logprob"] for one in most] == sorted(
            (one["logprob"] for one in most), reverse=True
        )
    chunks = streamed(client, body)
    inside = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [item for one in inside if one for item in one["content"]] == items


def test_the_end_of_a_reply_has_no_log_probability(client: TestClient) -> None:
    data = client.post(CHAT, json=chat("What is 27 + 45?", logprobs=True, max_tokens=60)).json()
    (choice,) = data["choices"]
    assert choice["finish_reason"] == "stop"
    items = choice["logprobs"]["content"]
    assert "".join(item["token"] for item in items) == choice["message"]["content"]
    assert data["usage"]["completion_tokens"] == len(items) + 1


def test_messages_may_come_in_parts(client: TestClient) -> None:
    parts = [{"type": "text", "text": "Tell me a story"}, {"type": "text", "text": "about a fox."}]
    joined = said(client.post(CHAT, json=chat("Tell me a story\nabout a fox.")))
    assert said(client.post(CHAT, json=chat() | {"messages": user(parts)})) == joined  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"n": 2}, "n", "one reply"),
        ({"foo": 1}, "foo", "unrecognized"),
        ({"temperature": "0.5"}, "temperature", "number"),
        ({"temperature": 500}, "temperature", "between"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"top_k": 1.5}, "top_k", ""),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
        ({"seed": -2}, "seed", "between"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": ["a"] * 17}, "stop", "16"),
        ({"stop": 5}, "stop", ""),
        ({"alpha": 1.5}, "alpha", "outside (0, 1]"),
        ({"alpha": "steep"}, "alpha", "auto"),
        ({"start": "20%", "max_tokens": None}, "start", "share of max_tokens"),
        ({"start": 1 << 30}, "start", "beyond"),
        ({"core_first": -1}, "core_first", ""),
        ({"lossless": "model"}, "lossless", "draft model"),
        ({"think": True}, "think", "no thinking switch"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "repetition_penalty"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"model": None}, "model", ""),
        ({"messages": []}, "messages", ""),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", ""),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "no content"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages", "empty"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y", ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "text only",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "tools"),
    ],
)
def test_a_refusal_names_the_field(
    client: TestClient, fields: dict[str, Any], param: str, word: str
) -> None:
    refusal(client.post(CHAT, json=chat() | fields), 400, param, word)


def test_a_missing_field_is_named(client: TestClient) -> None:
    body = chat()
    del body["messages"]
    error = refusal(client.post(CHAT, json=body), 400, "messages", "missing")
    assert error["type"] == "invalid_request_error"


def test_another_model_is_not_found(client: TestClient) -> None:
    error = refusal(client.post(CHAT, json=chat(model="gpt-4")), 404, "model", '"demo"')
    assert error["code"] == "model_not_found"


def test_a_prompt_beyond_the_context_says_so(client: TestClient) -> None:
    error = refusal(client.post(CHAT, json=chat("fox " * 3000)), 400, "messages", "context")
    assert error["code"] == "context_length_exceeded"
    response = client.post(CHAT, json=chat("fox " * 3000, stream=True))
    refusal(response, 400, "messages", "context")


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
        {"seed": -1, "max_tokens": -1, "max_completion_tokens": 12},
        {"top_k": -1, "temperature": 0},
        {"stop": None, "temperature": None, "stream": None, "alpha": None},
    ],
)
def test_what_changes_nothing_is_accepted(client: TestClient, fields: dict[str, Any]) -> None:
    assert said(client.post(CHAT, json=chat() | fields)) == said(client.post(CHAT, json=chat()))


def test_reasoning_is_apart_from_the_answer() -> None:
    from d3cli.serve.events import Closed, Opened, Written
    from d3cli.serve.formats import ChatFormat

    text = "<think>\nHm.\n</think>\n\nYes."
    events = [Opened(), *(Written(letter) for letter in text), Written("", finish_reason="stop")]
    made = ChatFormat("m", "f", with_scores=False, with_usage=False)
    message = made.whole([*events, Closed({})])["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == split_reasoning(text)
    made = ChatFormat("m", "f", with_scores=False, with_usage=False)
    deltas = [chunk["choices"][0]["delta"] for event in events for chunk in made.chunks(event)]
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
    assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == "Hm."
