"""Errors as OpenAI's API writes them, with the field of the request at fault.

A sentence names settings as the request's JSON does. What only the command that started the server
can set is called the server's.
"""

from typing import Any

from d3cli.base.errors import (
    ContextFullError,
    D3Error,
    GenerationError,
    ModelError,
    NotEnoughMemoryError,
    Setting,
    UsageError,
    Words,
    is_panic,
    spelled,
)

# The settings that a request can change.
FIELDS = frozenset(
    {
        *("alpha", "start", "core_first", "core_last", "units", "lossless", "think"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"),
        *("max_tokens", "max_completion_tokens", "stop"),
    }
)
LONGEST_MESSAGE = 1000  # characters


class ApiError(Exception):
    """A refusal or a failure, as the client gets it.

    Attributes:
        status: of HTTP.
        kind: OpenAI's `type` of the error.
        param: the field at fault; None for none.
        code: a word for programs; None for none.
        retry_after: seconds after which it may work; None if trying again is of no use.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        if len(message) > LONGEST_MESSAGE:  # it repeats what the client has sent
            message = message[:LONGEST_MESSAGE] + "…"
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def spell(setting: Setting) -> str:
    """A setting as a request writes it: ``top_p`` or ``"top_p": 0.9``."""
    name, value = setting
    if name not in FIELDS:
        return f"the server's {name}" + (f" ({value})" if value else "")
    if not value:
        return name
    return f'"{name}": {value}' if _is_number(value) else f'"{name}": "{value}"'


def in_words(words: Words) -> str:
    """A sentence with its settings as a request writes them."""
    return spelled(words, spell)


def as_api_error(error: BaseException, prompt: str) -> ApiError:
    """Any error as the client gets it.

    Args:
        prompt: the field that holds the prompt.
    """
    if isinstance(error, ApiError):
        return error
    if is_panic(error):
        return ApiError(
            400, "the model's tokenizer failed on this text: try another one", param=prompt
        )
    if not isinstance(error, D3Error):
        out_of_memory = isinstance(error, MemoryError)
        told = "out of memory" if out_of_memory else f"internal error: {type(error).__name__}"
        return ApiError(500, told, kind="server_error", code="internal_error")
    message = "; ".join(filter(None, error.told(spell)))
    field = error.field if error.field in FIELDS else None
    if isinstance(error, ContextFullError):
        return ApiError(400, message, param=prompt, code="context_length_exceeded")
    if isinstance(error, NotEnoughMemoryError):
        return ApiError(400, message, param=field or prompt, code="not_enough_memory")
    if isinstance(error, (UsageError, ModelError)) and not isinstance(error, GenerationError):
        return ApiError(400, message, param=field or prompt, code="invalid_value")
    return ApiError(500, message, kind="server_error", param=field, code="generation_failed")


def overloaded(message: str, retry_after: int) -> ApiError:
    """The refusal of a request that could be answered later."""
    return ApiError(
        503, message, kind="server_error", code="server_overloaded", retry_after=retry_after
    )


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
