"""Held-out text: from the built-in pairs or a user's file to documents that can be scored.

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
from typing import Literal

import msgspec

from d3cli.base.bounded_files import FileKind
from d3cli.base.errors import ContextFullError, UsageError
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.text.chat_template import Message, encode_chat
from d3cli.text.data_rows import read_data
from d3cli.text.tokens import encode_in_pieces

PASSAGE_TOKENS = 320  # of a plain text's passages, prompt and response together
PROMPT_TOKENS = 64  # of a plain text's passages
MAX_RESPONSE = 1024  # tokens scored of one document
MIN_DOCUMENTS, MIN_TOKENS = 32, 1024

_TEXT = FileKind(
    what="text file",
    largest=64 << 20,
    large_hint="a few hundred documents are enough",
    expand_home=True,
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One piece of text to score: a response after a conversation, or a plain text.

    Attributes:
        response: what is scored; of a plain text, everything after its first tokens.
        messages: the conversation before it; empty for a plain text.
        kind: the sort of text; empty where unknown.
    """

    response: str
    messages: tuple[Message, ...] = ()
    kind: str = ""


class _MessageRow(msgspec.Struct):
    role: Literal["system", "user", "assistant"]
    content: str

    def __post_init__(self) -> None:
        if not self.content.strip():
            raise ValueError("the content of a message is blank")


class _Row(msgspec.Struct):
    """A row by `known_row`. Other keys (a weight, a name) are for other programs."""

    messages: list[_MessageRow] | None = None
    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    kind: object = ""

    def __post_init__(self) -> None:
        if self.messages is not None:
            # What stands after the last reply has none; the reply is what is scored.
            while self.messages and self.messages[-1].role != "assistant":
                self.messages.pop()
            if len(self.messages) < 2:
                raise ValueError("the conversation has no reply after a message of the user")
            return
        names = ("text",) if self.text is not None else ("prompt", "response")
        for name in names:
            if not (getattr(self, name) or "").strip():
                raise ValueError(f'the row has no text as "{name}"')

    def sample(self) -> Sample:
        kind = self.kind if isinstance(self.kind, str) else ""
        if self.messages is not None:
            *before, last = ({"role": m.role, "content": m.content} for m in self.messages)
            return Sample(last["content"], tuple(before), kind)
        if self.text is not None:
            return Sample(self.text, kind=kind)
        assert self.prompt is not None and self.response is not None
        return Sample(self.response, ({"role": "user", "content": self.prompt},), kind)


def builtin_samples(model: LoadedModel) -> list[Sample]:
    """The pairs that ship with d3. The built-in model, which knows little, has its own."""
    package, *folder = ("d3cli", "builtin") if model.origin.builtin else ("d3cli.calibrate",)
    return read_samples(Path(str(files(package).joinpath(*folder, "heldout.jsonl"))))


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file: one for each row of data, or one plain text.

    The content decides which: JSON lines, a JSON array and an object with an array inside are rows.
    A row has "messages", whose last reply is the response, or "text", or "prompt" and "response",
    or the keys that other tools use for these (`known_row`).

    Raises:
        UsageError: the file cannot be read, or a row has none of these; with its line number. Or it
            has another format, such as CSV, or its name promises JSON and it holds none.
    """
    text = _TEXT.read_text(path)
    if not text.strip():
        raise UsageError(f"the text file {path} is empty", "use a file with text")
    rows = read_data(text, _Row, path)
    return [Sample(text)] if rows is None else [row.sample() for row in rows]


def encode_samples(model: LoadedModel, samples: Sequence[Sample]) -> list[Document]:
    """Samples as documents of the model's own tokens, by its chat template.

    A plain text is cut into passages of 320 tokens; the first 64 of each are the prompt. Documents
    are cut at the end of the context. Those with fewer than two response tokens are left out, and
    repeated ones are used once.

    Raises:
        UsageError: too little text is left; with the amount needed.
    """
    documents: list[Document] = []
    for sample in samples:
        documents += _documents(model, sample)
    fitting: dict[tuple[tuple[int, ...], ...], Document] = {}
    for document in documents:
        room = min(model.context_length - len(document.prompt_ids), MAX_RESPONSE)
        response = document.response_ids[: max(room, 0)]
        if document.prompt_ids and len(response) >= 2:
            key = (tuple(document.prompt_ids), tuple(response))
            fitting.setdefault(key, Document(document.prompt_ids, response))
    tokens = sum(len(document.response_ids) for document in fitting.values())
    if len(fitting) < MIN_DOCUMENTS or tokens < MIN_TOKENS:
        raise UsageError(
            f"there is too little text: {len(fitting)} documents with {tokens:,} response tokens "
            f"fit the model's context of {model.context_length:,} (repeated ones count once)",
            f"at least {MIN_DOCUMENTS} documents and {MIN_TOKENS:,} tokens are needed; a hundred "
            "documents are better",
        )
    return list(fitting.values())


def _documents(model: LoadedModel, sample: Sample) -> list[Document]:
    """A conversation as one document, a plain text as passages. Empty if the prompt is too long."""
    ids = encode_in_pieces(model.tokenizer, sample.response)
    if sample.messages:
        with suppress(ContextFullError):
            prompt = encode_chat(
                model.tokenizer,
                sample.messages,
                model.text.renderer,
                context=model.context_length,
            )
            return [Document(prompt, list(islice(ids, MAX_RESPONSE)))]
        return []
    found = []
    while passage := list(islice(ids, PASSAGE_TOKENS)):
        found.append(Document(passage[:PROMPT_TOKENS], passage[PROMPT_TOKENS:]))
    return found


def split(documents: Sequence[Document], seed: int) -> tuple[list[Document], list[Document]]:
    """A search half and an unseen half, by a seeded shuffle."""
    order = list(documents)
    random.Random(seed).shuffle(order)  # noqa: S311 - no secret
    return order[: len(order) // 2], order[len(order) // 2 :]


def choose(documents: Sequence[Document], count: int, seed: int) -> list[Document]:
    """`count` of the documents, by a seeded draw; all of them where there are no more.

    Raises:
        UsageError: `count` is too small for two halves.
    """
    if count < MIN_DOCUMENTS:
        raise UsageError(f"{count} documents are too few", f"at least {MIN_DOCUMENTS} are needed")
    if count >= len(documents):
        return list(documents)
    return random.Random(seed).sample(list(documents), count)  # noqa: S311 - no secret


def hash_documents(documents: Sequence[Document]) -> str:
    """A sha256 of the token ids; the order of the documents does not matter."""
    each = sorted(
        sha256(json.dumps([list(d.prompt_ids), list(d.response_ids)]).encode()).hexdigest()
        for d in documents
    )
    return sha256("".join(each).encode()).hexdigest()
