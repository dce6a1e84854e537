"""Held-out text: from built-in pairs or a user's file to documents that can be scored.

Knows a tokenizer and a context length; knows nothing of schedules or of how text is scored.
"""

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from d3cli.base.errors import ContextFullError, UsageError
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.text.chat_template import Message, encode_chat
from d3cli.text.tokens import check_length, encode_in_pieces

PROMPT_TOKENS = 64  # of a plain text, read before what is scored
PASSAGE_TOKENS = 320  # a plain text's passages, prompt and response together
LONGEST_RESPONSE = 1024  # tokens scored of one document
MIN_DOCUMENTS, MIN_TOKENS = 32, 1024
LARGEST_FILE = 64 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One piece of text to score: a response after a conversation, or a plain text.

    Attributes:
        response: what is scored; of a plain text, all that follows its first tokens.
        messages: the conversation before it; empty for a plain text.
        kind: what sort of text it is; empty where nobody said.
    """

    response: str
    messages: tuple[Message, ...] = ()
    kind: str = ""


def builtin_samples(model: LoadedModel) -> list[Sample]:
    """The pairs that ship with d3; for the built-in model, which knows little, its own split."""
    if not model.origin.builtin:
        path = Path(str(files("d3cli.calibrate") / "heldout.jsonl"))
    else:
        path = Path(str(files("d3cli") / "builtin" / "heldout.jsonl"))
    return read_samples(path)


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file: ``.jsonl`` by rows, anything else as one plain text.

    A row has "prompt" and "response", or "text", or "messages" whose last one is the response.

    Raises:
        UsageError: it cannot be read, or a row is none of these; with the row's number.
    """
    try:
        path = path.expanduser()
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise UsageError(f"{path} is not a regular file", "copy the text into a file")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise UsageError(f"{path} is larger than 64 MB", "a few hundred documents are enough")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", "save it as UTF-8") from error
    except (OSError, RuntimeError) as error:  # the latter: no such user's home
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}", "check the path") from error
    if not text.strip():
        raise UsageError(f"{path} is empty", "give a file with text")
    if path.suffix.lower() != ".jsonl":
        return [Sample(text)]
    return [
        _read_row(f"{path}, line {number}", line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _read_row(where: str, line: str) -> Sample:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where} is not JSON: {error}", "correct the line, or remove it"
        ) from error
    if not isinstance(row, dict):
        raise UsageError(f"{where} is not a JSON object", _FORM)
    kind = row.get("kind", "")
    kind = kind if isinstance(kind, str) else ""
    if "messages" in row:
        *before, last = _messages(where, row["messages"])
        return Sample(last["content"], tuple(before), kind)
    if "text" in row:
        return Sample(_text(where, row, "text"), kind=kind)
    prompt, response = _text(where, row, "prompt"), _text(where, row, "response")
    return Sample(response, ({"role": "user", "content": prompt},), kind)


_FORM = (
    'a row is {"prompt": "…", "response": "…"}, {"text": "…"} or '
    '{"messages": [{"role": "user", "content": "…"}, …]}'
)


def _text(where: str, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f'{where} has no text as "{key}"', _FORM)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UsageError(f'{where} has half a character in "{key}"', "correct its escapes")
    return value


def _messages(where: str, value: object) -> list[Message]:
    if not isinstance(value, list) or len(value) < 2:
        raise UsageError(f'{where} has fewer than two "messages"', _FORM)
    for message in value:
        if not isinstance(message, dict):
            raise UsageError(f"{where} has a message that is no object", _FORM)
        if message.get("role") not in ("system", "user", "assistant"):
            raise UsageError(f"{where} has a message without a known role", _FORM)
        _text(where, message, "content")
    # What else stands in a row (a weight, a name) is for other programs.
    return [{"role": message["role"], "content": message["content"]} for message in value]


def encode_samples(
    model: LoadedModel, samples: Sequence[Sample], *, prompt_tokens: int = PROMPT_TOKENS
) -> list[Document]:
    """Samples as documents of the model's own tokens, by its chat template.

    A plain text is cut into passages of 320 tokens, the first `prompt_tokens` of each the prompt.
    Documents that exceed the context are cut; those without two tokens of response, and repeated
    ones, are left out.

    Raises:
        UsageError: too little text is left; with the amount needed.
    """
    documents: list[Document] = []
    for sample in samples:
        ids = encode_in_pieces(model.tokenizer, sample.response)
        if sample.messages:
            with suppress(ContextFullError):  # it would be left out below
                texts = "\n".join(message["content"] for message in sample.messages)
                check_length(model.tokenizer, texts, model.context_length)
                prompt = encode_chat(model.tokenizer, sample.messages, model.text.renderer)
                documents.append(Document(prompt, list(islice(ids, LONGEST_RESPONSE))))
            continue
        size = max(PASSAGE_TOKENS, prompt_tokens + 2)
        while passage := list(islice(ids, size)):
            documents.append(Document(passage[:prompt_tokens], passage[prompt_tokens:]))
    fitting: dict[tuple[tuple[int, ...], ...], Document] = {}  # the same text twice counts once
    for document in documents:
        room = min(model.context_length - len(document.prompt_ids), LONGEST_RESPONSE)
        response = document.response_ids[: max(room, 0)]
        if document.prompt_ids and len(response) >= 2:
            key = (tuple(document.prompt_ids), tuple(response))
            fitting.setdefault(key, Document(document.prompt_ids, response))
    tokens = sum(len(document.response_ids) for document in fitting.values())
    if len(fitting) < MIN_DOCUMENTS or tokens < MIN_TOKENS:
        raise UsageError(
            f"there are {len(fitting)} documents with {tokens:,} response tokens that fit the "
            f"model's context of {model.context_length:,} (repeated ones count once)",
            f"at least {MIN_DOCUMENTS} documents and {MIN_TOKENS:,} tokens are needed, and "
            "a hundred documents are better",
        )
    return list(fitting.values())


def split(documents: Sequence[Document], seed: int) -> tuple[list[Document], list[Document]]:
    """A search half and an unseen half, by a seeded shuffle."""
    order = list(documents)
    random.Random(seed).shuffle(order)  # noqa: S311 - no secret
    return order[: len(order) // 2], order[len(order) // 2 :]


def choose(documents: Sequence[Document], count: int, seed: int) -> list[Document]:
    """So many of the documents, by a seeded draw.

    Raises:
        UsageError: fewer than can be halved.
    """
    if count < MIN_DOCUMENTS:
        raise UsageError(f"{count} documents are too few", f"at least {MIN_DOCUMENTS} are needed")
    if count >= len(documents):
        return list(documents)
    return random.Random(seed).sample(list(documents), count)  # noqa: S311 - no secret


def hash_documents(documents: Sequence[Document]) -> str:
    """A sha256 of the token ids, whatever the order of the documents."""
    each = sorted(
        sha256(json.dumps([list(d.prompt_ids), list(d.response_ids)]).encode()).hexdigest()
        for d in documents
    )
    return sha256("".join(each).encode()).hexdigest()
