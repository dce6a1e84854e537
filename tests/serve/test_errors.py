"""Errors of the library as OpenAI's API writes them."""

import pytest

from d3cli.base.errors import (
    ContextFullError,
    D3Error,
    ModelError,
    NotEnoughMemoryError,
    Setting,
    UsageError,
)
from d3cli.serve.error_handlers import of_validation
from d3cli.serve.errors import as_api_error, in_words, overloaded


def test_settings_are_named_as_in_a_request() -> None:
    assert in_words(("set ", Setting("max_tokens"))) == "set max_tokens"
    assert in_words(("set ", Setting("alpha", "off"))) == 'set "alpha": "off"'
    assert in_words(("set ", Setting("alpha", "0.99"))) == 'set "alpha": 0.99'
    assert in_words(("set ", Setting("quantization", "nested"))) == (
        "set the server's quantization (nested)"
    )


@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (UsageError((Setting("top_p"), " is 2")), 400, "top_p", "invalid_value"),
        (UsageError("no", field="units"), 400, "units", "invalid_value"),
        (UsageError((Setting("dtype"), " is odd")), 400, "messages", "invalid_value"),
        (ContextFullError(9, 5), 400, "messages", "context_length_exceeded"),
        (NotEnoughMemoryError("no", field="max_tokens"), 400, "max_tokens", "not_enough_memory"),
        (ModelError("the template refuses"), 400, "messages", "invalid_value"),
        (D3Error("odd"), 500, None, "generation_failed"),
        (KeyError("a secret"), 500, None, "internal_error"),
    ],
)
def test_every_error_has_a_status_and_a_field(
    error: Exception, status: int, param: str | None, code: str
) -> None:
    found = as_api_error(error, "messages")
    assert (found.status, found.param, found.code) == (status, param, code)
    assert "secret" not in found.message


def test_a_hint_follows_the_message() -> None:
    error = UsageError((Setting("seed"), " is 1.5"), "use a whole number")
    assert as_api_error(error, "prompt").message == "seed is 1.5; use a whole number"
    assert overloaded("later", 7).headers == {"Retry-After": "7"}


def test_a_made_up_name_is_cut() -> None:
    loc = ("body", "x" * 5000)
    error = of_validation([{"type": "extra_forbidden", "loc": loc, "msg": ""}])
    assert error.param == "x" * 100
    assert len(error.message) < 200
