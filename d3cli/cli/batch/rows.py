"""The rows of ``d3 generate --input``: read strictly, so that a mistake is found before a run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from d3cli.base.errors import PromptError
from d3cli.base.json_rows import parse_rows

FORM = (
    'a row is one line: {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}, with '
    '"id", "system", "max_tokens" and "seed" if you like'
)
RAW_FORM = 'with --raw, a row is {"prompt": "…"}, and no template puts messages together'


class RowMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class InputRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One prompt, and what it sets for itself.

    Attributes:
        id: comes back in the result.
        system, max_tokens, seed: instead of the options of these names.
    """

    prompt: str | None = None
    messages: tuple[RowMessage, ...] | None = None
    id: str | int | None = None
    system: str | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError('it needs exactly one of "prompt" and "messages"')
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("the prompt is empty")
        if self.messages is not None:
            last = self.messages[-1] if self.messages else None
            if last is None or last.role != "user" or not last.content.strip():
                raise ValueError("the last message must be the user's, with some text")
            if any(message.role == "system" for message in self.messages[self.system is None :]):
                raise ValueError("a system prompt must be the first message, and the only one")

    def conversation(self, system: str | None) -> list[dict[str, str]]:
        """The messages, with a system prompt: the row's own, else `system`."""
        messages = self.messages or (RowMessage("user", self.prompt or ""),)
        found = [{"role": one.role, "content": one.content} for one in messages]
        own = system if self.system is None else self.system
        if own and found[0]["role"] != "system":
            found.insert(0, {"role": "system", "content": own})
        return found

    @property
    def digest(self) -> str:
        """Tells whether a row has changed: 16 digits of a SHA-256."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


def parse_input(text: str, path: Path, *, raw: bool) -> list[InputRow]:
    """The rows of the input.

    Args:
        raw: whether prompts are used without a chat template.

    Raises:
        PromptError: a line is not such a row; with its number. Or there is none.
    """
    rows = []
    for number, row in parse_rows(text, InputRow, name=str(path), error=PromptError, hint=FORM):
        if raw and (row.messages is not None or row.system is not None):
            raise PromptError(
                f"{path}, line {number}: it has messages or a system prompt", RAW_FORM
            )
        rows.append(row)
    if not rows:
        raise PromptError(f"{path} has no prompts", FORM)
    return rows


def longest(rows: Sequence[InputRow], system: str | None) -> str:
    """The text of the longest prompt."""
    return max(
        ("\n".join(one["content"] for one in row.conversation(system)) for row in rows), key=len
    )


def most_tokens(rows: Sequence[InputRow], default: int | None) -> int | None:
    """How many tokens the longest reply may have; None if one has no limit."""
    limits = [row.max_tokens or default for row in rows]
    return None if None in limits else max(limit for limit in limits if limit is not None)
