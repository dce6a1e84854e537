"""The types of requests: half characters are refused, and many mistakes cost no more than one."""

from typing import Any

import pytest
from pydantic import ValidationError

from d3cli.serve.fields import ChatFields, TextFields
from tests.serve.conftest import CHAT, Connect, chat, refusal

HALF = '"\\ud800"'
MANY = 1000
MESSAGE = {"role": "user", "content": "Hello."}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [1] * MANY},
        {"messages": [MESSAGE | {"content": [1] * MANY}]},
        {"messages": [MESSAGE | {f"field_{at}": 1 for at in range(MANY)}]},
        {"messages": [MESSAGE], "stop": [1] * MANY},
        {"messages": [MESSAGE], "modalities": [1] * MANY},
        {"messages": [MESSAGE]} | {f"field_{at}": 1 for at in range(MANY)},
    ],
)
def test_many_mistakes_make_few_errors(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatFields.model_validate({"model": "demo"} | fields)
    assert caught.value.error_count() <= 4


@pytest.mark.parametrize("prompt", [[1.5] * MANY, [[1.5] * MANY], [[1.5]] * MANY])
def test_a_list_of_no_tokens_makes_few_errors(prompt: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        TextFields.model_validate({"model": "demo", "prompt": prompt})
    assert caught.value.error_count() <= 4


def test_the_first_unknown_field_is_named(connect: Connect) -> None:
    body = chat() | {"zebra": 1, "ape": 2}
    refusal(connect().post(CHAT, json=body), 400, "zebra", "unrecognized")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", f'{{"model": "demo", "prompt": {HALF}}}', "prompt"),
        ("/v1/completions", f'{{"model": "demo", "prompt": [{HALF}]}}', "prompt"),
        ("/v1/completions", f'{{"model": "demo", "prompt": "a", "start": {HALF}}}', "start"),
        (
            CHAT,
            f'{{"model": "demo", "messages": [{{"role": "user", "content": {HALF}}}]}}',
            "messages[0].content",
        ),
    ],
)
def test_half_a_character_is_refused(connect: Connect, path: str, body: str, param: str) -> None:
    """JSON can write half of a surrogate pair, which is no text."""
    headers = {"Content-Type": "application/json"}
    refusal(connect().post(path, content=body, headers=headers), 400, param, "Unicode")


@pytest.mark.parametrize("body", [b'{"model": ', b'{"model": "\xff"}', b"[" * 100_000])
def test_what_is_no_json_is_refused_as_that(body: bytes, connect: Connect) -> None:
    headers = {"Content-Type": "application/json"}
    error = refusal(connect().post(CHAT, content=body, headers=headers), 400, None, "valid JSON")
    assert error["code"] == "invalid_json"


def test_token_ids_of_another_vocabulary_are_refused(connect: Connect) -> None:
    body = {"model": "demo", "prompt": [1, 999_999], "max_tokens": 2}
    refusal(
        connect().post("/v1/completions", json=body), 400, "prompt", "the model's are 0 to 2,047"
    )
