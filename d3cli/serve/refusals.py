"""What OpenAI's API has and d3 does not: refused by name, never ignored if it changes a reply."""

from collections.abc import Sequence

from d3cli.serve.errors import ApiError
from d3cli.serve.fields import (
    LONGEST_STOP,
    MOST_PARTS,
    MOST_STOPS,
    ChatFields,
    ChatMessage,
    ReplyFields,
    TextFields,
)
from d3cli.text.chat_template import Message


def unsupported(param: str, message: str) -> ApiError:
    """The refusal of a field or a value that d3 has nothing for."""
    return ApiError(400, message, param=param, code="unsupported_value")


def check_common(fields: ReplyFields) -> None:
    """Refuses what no request can have.

    Raises:
        ApiError: with the field.
    """
    if fields.n not in (None, 1):
        raise unsupported("n", f"n is {fields.n}: d3 writes one reply for each request, so n is 1")
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(fields, name):
            raise unsupported(name, f"{name} is not supported: use repetition_penalty, or 0")
    if fields.logit_bias:
        raise unsupported("logit_bias", "logit_bias is not supported: leave it out")
    if fields.stream_options is not None and not fields.stream:
        raise ApiError(
            400,
            "stream_options needs stream to be true",
            param="stream_options",
            code="invalid_value",
        )
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    if len(stops) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
        raise ApiError(
            400,
            f"stop may have {MOST_STOPS} texts of {LONGEST_STOP:,} characters",
            param="stop",
            code="invalid_value",
        )
    if not all(stops):
        raise ApiError(400, "a stop string is empty", param="stop", code="invalid_value")


def check_chat(fields: ChatFields) -> None:
    """Refuses what no chat can have; raises as `check_common`."""
    for name in ("tools", "functions", "audio", "prediction", "web_search_options"):
        if getattr(fields, name):
            raise unsupported(name, f"{name} is not supported: leave it out")
    for name in ("tool_choice", "function_call"):
        if getattr(fields, name) not in (None, "none", "auto"):
            raise unsupported(name, f"{name} can only be none or auto: there are no tools")
    for name in ("reasoning_effort", "verbosity"):
        if getattr(fields, name) is not None:
            raise unsupported(name, f"{name} is not supported: think turns thinking on or off")
    if fields.modalities not in (None, ["text"]):
        raise unsupported("modalities", 'modalities can only be ["text"]')
    if fields.response_format not in (None, {"type": "text"}):
        raise unsupported("response_format", 'response_format can only be {"type": "text"}')
    if fields.top_logprobs and not fields.logprobs:
        raise ApiError(
            400,
            "top_logprobs needs logprobs to be true",
            param="top_logprobs",
            code="invalid_value",
        )


def check_text(fields: TextFields) -> None:
    """Refuses what no completion of a text can have; raises as `check_common`."""
    if fields.suffix:
        raise unsupported("suffix", "suffix is not supported: leave it out")
    if fields.best_of not in (None, 1):
        raise unsupported("best_of", f"best_of is {fields.best_of}: it can only be 1")
    if fields.max_tokens == 0 and not fields.echo:
        raise ApiError(
            400,
            "max_tokens is 0: it must be at least 1, or echo true",
            param="max_tokens",
            code="invalid_value",
        )


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages as the chat template takes them.

    Raises:
        ApiError: with the message at fault.
    """
    return [_message(at, message) for at, message in enumerate(messages)]


def prompt_of(prompt: str | list[str] | list[int] | list[list[int]]) -> str | list[int]:
    """The one text to continue, or its token ids.

    Raises:
        ApiError: there are several, or none.
    """
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        raise ApiError(400, "the prompt is empty", param="prompt", code="invalid_value")
    if isinstance(prompt[0], int):
        return [id_ for id_ in prompt if isinstance(id_, int)]
    if len(prompt) > 1:
        raise unsupported(
            "prompt", f"there are {len(prompt)} prompts: send one request for each of them"
        )
    (only,) = prompt
    assert not isinstance(only, int)
    return only


def _message(at: int, message: ChatMessage) -> Message:
    where = f"messages[{at}]"
    if message.role in ("tool", "function") or message.tool_calls or message.function_call:
        raise unsupported(where, f"{where} is about tools, which are not supported")
    if message.audio:
        raise unsupported(f"{where}.audio", f"{where}.audio is not supported")
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if content is None:
        raise ApiError(
            400, f"{where} has no content", param=f"{where}.content", code="invalid_value"
        )
    return {"role": role, "content": content if isinstance(content, str) else _joined(at, message)}


def _joined(at: int, message: ChatMessage) -> str:
    """The text of a message that comes in parts."""
    assert isinstance(message.content, list)
    where = f"messages[{at}].content"
    if len(message.content) > MOST_PARTS:
        raise ApiError(
            400, f"{where} has more than {MOST_PARTS} parts", param=where, code="invalid_value"
        )
    texts = []
    for number, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            raise unsupported(
                f"{where}[{number}]", f"{where}[{number}] is not a text: this model reads text only"
            )
        texts.append(part.text)
    return "\n".join(texts)
