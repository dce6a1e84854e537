"""Rows of data sets: the keys that other tools use, as the keys that d3 uses.

d3's own are "messages", "text", and "prompt" with "response". This module knows the keys of
TRL (prompt, completion, chosen), Alpaca and Dolly (instruction, input, output), questions with
answers, ShareGPT (conversations of from and value), and the typed parts of OpenAI's messages. It
leaves the types of values to the caller's check.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from d3cli.base.errors import D3Error, UsageError
from d3cli.base.json_rows import Prepare, is_json, parse_rows, read_rows
from d3cli.base.structure import may_be_json, text_format

T = TypeVar("T")

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
PROMPTS = ("prompt", "instruction", "question", "query", "input")
RESPONSES = ("response", "completion", "output", "answer", "chosen")
ADDITIONS = ("input", "context")  # of an instruction or a question
SYSTEMS = ("system", "system_prompt")
KNOWN = {"text", *CONVERSATIONS, *PROMPTS, *RESPONSES}
ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "developer": "system",
}
TEXT_PARTS = ("text", "input_text", "output_text")
JSON_LINES, JSON_SUFFIXES = (".jsonl", ".ndjson"), (".jsonl", ".ndjson", ".json")
OTHER_SUFFIXES = {".csv": "CSV", ".tsv": "CSV", ".yaml": "YAML", ".yml": "YAML"}
MOST_NAMES = 8  # of a row's keys, in an error
# What may stand at the start of a line of JSON although no one sees it: byte order marks of files
# that were joined, zero-width and no-break spaces, record separators (RFC 7464), NULs.
_UNSEEN = re.compile("^[\ufeff\u200b\u2060\u00a0\x1e\x00 \t]+", re.MULTILINE)

MOST_ROWS = 100_000  # each is parsed, and tokenized later; a few hundred are used
FORM = (
    'a row is {"prompt": "…", "response": "…"}, {"text": "…"} or '
    '{"messages": [{"role": "user", "content": "…"}, …]}'
)


def read_data(
    text: str,
    row: type[T],
    path: Path,
    *,
    error: type[D3Error] = UsageError,
    form: str = FORM,
    prepare: Prepare | None = None,
) -> list[T] | None:
    """The rows of a text of any form (`read_rows`); None if it is prose.

    The content decides. Only a name that promises rows (``.jsonl``, ``.json``, ``.csv``) makes
    prose an error.

    Args:
        path: names the text in an error.
        form: what a row is, for a hint.
        prepare: as for `parse_rows`; None for `known_row`.

    Raises:
        D3Error: of the class `error`: a bad row, with its number; more than `MOST_ROWS`; or the
            text has another format.
    """
    prepare = prepare or known_row
    suffix = path.suffix.lower()
    text = _UNSEEN.sub("", text)
    found = text_format(text)
    if not found:
        found = "JSON" if may_be_json(text) and is_json(text) else OTHER_SUFFIXES.get(suffix, "")
    if found not in ("", "JSON"):
        raise error(f"{path} holds {found}", f"save its rows as JSON lines: {form}")
    rows: Iterator[T]
    if suffix in JSON_LINES and not is_json(text):
        lines = parse_rows(text, row, name=str(path), error=error, hint=form, prepare=prepare)
        rows = (each for _, each in lines)
    elif found or suffix in JSON_SUFFIXES:
        rows = read_rows(
            text,
            row,
            name=str(path),
            is_row=lambda value: not KNOWN.isdisjoint(value),
            prepare=prepare,
            error=error,
            hint=form,
        )
    else:
        return None
    read = list(islice(rows, MOST_ROWS + 1))
    if len(read) > MOST_ROWS:
        raise error(f"{path} has more than {MOST_ROWS:,} rows", "a few hundred are enough")
    return read


def known_row(row: Any, *, with_reply: bool = True) -> Any:
    """A decoded row with d3's own keys. Its other keys stay.

    A string is a text, an array a conversation. What is no row at all is returned as it is.

    Args:
        with_reply: whether a prompt without a response stays one, for the caller to refuse.

    Raises:
        ValueError: the row has no known key, or a message has a part that is not text.
    """
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, list):
        return {"messages": [_message(each) for each in row]} if _are_messages(row) else row
    if not isinstance(row, dict):
        return row
    if isinstance(row.get("row"), dict) and "row_idx" in row:  # as the hub's viewer writes it
        row = row["row"]
    given = {key: value for key, value in row.items() if value is not None}
    _check_keys(given)
    conversation = _first(given, CONVERSATIONS)
    if conversation:
        others = {key: value for key, value in row.items() if key != conversation}
        messages = given[conversation]
        if isinstance(messages, list):
            messages = _with_reply(given, [_message(each) for each in messages])
            messages = _with_system(given, messages)
        return others | {"messages": messages}
    return row if "text" in given else _pair(row, given, with_reply=with_reply)


def known_prompt(row: Any) -> Any:
    """As `known_row`, for a prompt: without the reply at its end. A string is a prompt."""
    if isinstance(row, str):
        return {"prompt": row}
    row = known_row(row, with_reply=False)
    if not isinstance(row, dict):
        return row
    messages = row.get("messages")
    if isinstance(messages, list) and len(messages) > 1 and _are_messages(messages):
        ends = messages[-1].get("role") == "assistant"
        return row | {"messages": messages[:-1] if ends else messages}
    return row


def _check_keys(given: Mapping[str, Any]) -> None:
    if not given or KNOWN & given.keys():
        return
    if {"role", "content"} <= given.keys() or {"from", "value"} <= given.keys():
        raise ValueError('it is a single message: a row has all of a conversation, as "messages"')
    names = ", ".join(f'"{key[:40]}"' for key in list(given)[:MOST_NAMES])
    more = ", …" if len(given) > MOST_NAMES else ""
    raise ValueError(f"none of its keys is known: {names}{more}")


def _pair(row: dict[str, Any], given: Mapping[str, Any], *, with_reply: bool) -> dict[str, Any]:
    """A row with a prompt and a response under any names."""
    asked, replied = _first(given, PROMPTS), _first(given, RESPONSES)
    others = {key: value for key, value in row.items() if key not in (asked, replied)}
    prompt = given.get(asked)
    if isinstance(prompt, str) and asked not in ("prompt", "input"):
        for key in ADDITIONS:
            if isinstance(given.get(key), str) and given[key].strip():
                prompt += "\n\n" + given[key]
    response = given.get(replied)
    prompt, response = (
        [value] if _are_messages([value]) else value for value in (prompt, response)
    )
    before = _history(given) if asked == "instruction" else []
    plain = not (before or _are_messages(prompt) or _are_messages(response))
    if (plain and not _system(given)) or (with_reply and response is None):
        return others | {
            key: value
            for key, value in (("prompt", prompt), ("response", response))
            if value is not None
        }
    messages = before
    if _are_messages(response) and _message(response[0]).get("role") != "assistant":
        prompt = None  # "chosen" has the prompt in it
    for value, role in ((prompt, "user"), (response, "assistant")):
        if _are_messages(value):
            messages += [_message(each) for each in value]
        elif value is not None:
            messages.append({"role": role, "content": value})
    return others | {"messages": _with_system(given, messages)}


def _first(given: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in given), "")


def _are_messages(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _history(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns before an instruction: pairs of a prompt and a response."""
    turns = given.get("history")
    if not isinstance(turns, list):
        return []
    return [
        {"role": role, "content": text}
        for pair in turns
        if isinstance(pair, list)
        for role, text in zip(("user", "assistant"), pair, strict=False)
    ]


def _system(given: Mapping[str, Any]) -> str:
    text = given.get(_first(given, SYSTEMS))
    return text if isinstance(text, str) and text.strip() else ""


def _with_reply(given: Mapping[str, Any], messages: list[Any]) -> list[Any]:
    """A conversation with the reply that stands under a key of its own, if it lacks one."""
    last = messages[-1] if messages else None
    reply = given.get(_first(given, RESPONSES))
    if not (isinstance(last, dict) and last.get("role") == "user") or reply is None:
        return messages
    if isinstance(reply, str):
        return [*messages, {"role": "assistant", "content": reply}]
    replies = [_message(each) for each in (reply if isinstance(reply, list) else [reply])]
    whole = replies and isinstance(replies[0], dict) and replies[0].get("role") != "assistant"
    return replies if whole else [*messages, *replies]


def _with_system(given: Mapping[str, Any], messages: list[Any]) -> list[Any]:
    text = _system(given)
    if not text or any(isinstance(one, dict) and one.get("role") == "system" for one in messages):
        return messages
    return [{"role": "system", "content": text}, *messages]


def _message(message: Any) -> Any:
    """A message with d3's keys and roles, and its typed parts as one text."""
    if not isinstance(message, dict):
        return message
    found = dict(message)
    for theirs, ours in (("from", "role"), ("value", "content")):
        if theirs in found and ours not in found:
            found[ours] = found.pop(theirs)
    role, content = found.get("role"), found.get("content")
    if isinstance(role, str):
        found["role"] = ROLES.get(role.lower(), role)
    if isinstance(content, list):
        found["content"] = "".join(map(_text_of, content))
    return found


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ValueError(f"a message has a part of type {kind!r}; d3 reads only text")
