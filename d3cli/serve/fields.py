"""The fields of requests, as OpenAI's API has them, and d3's own beside them.

Types alone are checked here, and limits that need no model. A field that OpenAI does not know is
refused, as OpenAI does. Only the first mistake of a list is looked for: a body of a few MiB could
hold millions, each an object of some hundred bytes.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MOST_MESSAGES, MOST_PARTS = 4096, 256
MOST_STOPS, LONGEST_STOP = 16, 1024
MOST_CHAT_CHOICES, MOST_TEXT_CHOICES = 20, 5  # likely tokens beside each token
LONGEST_NAME = 512

Item = TypeVar("Item")
Items = Annotated[list[Item], Field(fail_fast=True)]


def _whole(text: str) -> str:
    """Refuses half of a surrogate pair, which JSON can write and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("string_unicode", "Input should be valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Fraction = float | None
Count = int | None


class _Fields(BaseModel):
    """Exact types: no text for a number, no NaN, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown(cls, body: Any) -> Any:
        """Leaves one unknown field to refuse."""
        if not isinstance(body, dict):
            return body
        unknown = body.keys() - cls.model_fields.keys()
        if len(unknown) < 2:
            return body
        first = next(name for name in body if name in unknown)
        known = {name: value for name, value in body.items() if name not in unknown}
        return known | {first: body[first]}


class StreamOptions(_Fields):
    """What a stream contains beside the reply."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="Has no effect.")


class Part(BaseModel):
    """One part of a message. Only text can be read."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str = Field(max_length=LONGEST_NAME)
    text: Text | None = None


class ChatMessage(_Fields):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Items[Part] | None = None
    name: str | None = Field(None, description="Has no effect.")
    refusal: str | None = Field(None, description="Has no effect.")
    reasoning_content: str | None = Field(None, description="Has no effect: models forget it.")
    reasoning: Any = Field(None, description="Has no effect: models forget it.")
    annotations: list[Any] | None = Field(None, description="Has no effect.")
    audio: Any = None
    function_call: Any = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None


class ReplyFields(_Fields):
    """What both kinds of requests have in common."""

    model: str = Field(max_length=LONGEST_NAME)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count = Field(None, description="Only 1.")
    max_tokens: Count = Field(None, description="-1: what the context leaves.")
    stop: Text | Items[Text] | None = None
    seed: Count = Field(None, description="-1: a new one for each reply.")
    temperature: Fraction = None
    top_p: Fraction = None
    presence_penalty: Fraction = Field(None, description="Only 0.")
    frequency_penalty: Fraction = Field(None, description="Only 0.")
    logit_bias: dict[str, Any] | None = Field(None, description="Only an empty one.")
    user: str | None = Field(
        None, max_length=LONGEST_NAME, description="Users take turns where replies must wait."
    )
    # d3's own.
    alpha: float | Literal["auto", "off"] | None = Field(None, description="Decay per token.")
    start: int | Text | None = Field(None, description="Tokens at full depth first, or 20%.")
    core_first: Count = Field(None, ge=0, le=1 << 20)
    core_last: Count = Field(None, ge=0, le=1 << 20)
    units: Literal["auto", "layer", "sublayer", "plane"] | None = None
    lossless: bool | Literal["auto", "lookup", "depth", "model", "off"] | None = None
    top_k: Count = Field(None, description="0 or -1 keeps all.")
    min_p: Fraction = None
    repetition_penalty: Fraction = None


class ChatFields(ReplyFields):
    """The body of a request for `/v1/chat/completions`."""

    messages: Items[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: Count = None
    logprobs: bool | None = None
    top_logprobs: Count = Field(None, ge=0, le=MOST_CHAT_CHOICES)
    think: bool | None = Field(None, description="Turns a reasoning model's thinking on or off.")
    response_format: dict[str, Any] | None = Field(None, description="Only text.")
    tools: list[Any] | None = Field(None, description="Only an empty list.")
    tool_choice: Any = Field(None, description="Only none or auto.")
    parallel_tool_calls: bool | None = Field(None, description="Has no effect.")
    functions: list[Any] | None = Field(None, description="Only an empty list.")
    function_call: Any = Field(None, description="Only none or auto.")
    modalities: Items[str] | None = Field(None, description="Only text.")
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    metadata: dict[str, Any] | None = Field(None, description="Has no effect.")
    store: bool | None = Field(None, description="Has no effect: nothing is stored.")
    service_tier: str | None = Field(None, description="Has no effect.")
    safety_identifier: str | None = Field(None, description="Has no effect.")
    prompt_cache_key: str | None = Field(None, description="Has no effect.")
    prompt_cache_retention: str | None = Field(None, description="Has no effect.")


class TextFields(ReplyFields):
    """The body of a request for `/v1/completions`."""

    prompt: Text | Items[Text] | Items[int] | Items[Items[int]]
    echo: bool | None = Field(None, description="Puts the prompt before the reply.")
    logprobs: Count = Field(None, ge=0, le=MOST_TEXT_CHOICES)
    suffix: str | None = Field(None, description="Only an empty one.")
    best_of: Count = Field(None, description="Only 1.")
