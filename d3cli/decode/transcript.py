"""Conversations on disk: one file each, one JSON line per message, mode 0600.

Adding a message replaces the whole file, so a crash leaves the old file or the new one. Knows
nothing of models or terminals; no torch.
"""

import json
import secrets
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from d3cli.base.atomic_files import make_directory, replace_file
from d3cli.base.bounded_files import FileKind
from d3cli.base.errors import TranscriptError, UsageError
from d3cli.base.json_rows import is_json, parse_rows
from d3cli.base.settings import state_dir

SCHEMA = 1
SUFFIX = ".jsonl"
CONVERSATION = FileKind(
    what="conversation",
    largest=64 << 20,
    error=TranscriptError,
    missing_hint="d3 chat --list shows the saved ones",
)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation.

    Attributes:
        model: the model that wrote a reply.
        revision: of a model on the hub, if one was asked for.
        finish_reason, schedule, stats: of a reply, as in ``d3 generate --json``.
        lossless: what was drafted and accepted in a lossless reply; None for other replies.

    Raises:
        ValueError: the content is not valid Unicode.
    """

    role: Literal["system", "user", "assistant"]
    content: str
    model: str | None = None
    revision: str | None = None
    finish_reason: str | None = None
    schedule: Mapping[str, Any] | None = None
    stats: Mapping[str, Any] | None = None
    lossless: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self.content.encode()  # half a surrogate pair could not be saved

    def to_json(self) -> dict[str, Any]:
        """A plain object. Only a reply has the fields that only replies need."""
        message: dict[str, Any] = {"schema": SCHEMA, "role": self.role, "content": self.content}
        if self.role == "assistant":
            message |= {
                "model": self.model,
                "finish_reason": self.finish_reason,
                "schedule": self.schedule,
                "stats": self.stats,
            }
            if self.revision is not None:
                message["revision"] = self.revision
            if self.lossless is not None:
                message["lossless"] = self.lossless
        return message


@dataclass(frozen=True, slots=True)
class _Head:
    """The field that a line of any version has."""

    schema: Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class Summary:
    """One conversation in a list.

    Attributes:
        changed: when its last message was added, in seconds since 1970.
        problem: why it cannot be read; empty if it can.
    """

    id: str
    changed: float
    messages: tuple[ChatMessage, ...] = ()
    problem: str = ""

    @property
    def title(self) -> str:
        """The first line that the user wrote, or the name of a file that stands before it."""
        first = next((one.content for one in self.messages if one.role == "user"), "")
        return first.strip().partition("\n")[0].removesuffix(":")

    @property
    def model(self) -> str | None:
        """The model that wrote the last reply."""
        return last_model(self.messages)


def last_model(messages: Sequence[ChatMessage]) -> str | None:
    """The model that wrote the last reply; None if there is no reply."""
    reply = _last_reply(messages)
    return None if reply is None else reply.model


def last_revision(messages: Sequence[ChatMessage]) -> str | None:
    """The revision that was asked for of `last_model`; None if none was."""
    reply = _last_reply(messages)
    return None if reply is None else reply.revision


def _last_reply(messages: Sequence[ChatMessage]) -> ChatMessage | None:
    return next((one for one in reversed(messages) if one.role == "assistant"), None)


def new_id() -> str:
    """A unique id that sorts by time: ``20261121-134259-3f2a``."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def path_of(id_: str) -> Path:
    """The file of the conversation with this id, whether it exists or not."""
    return _directory() / (id_ + SUFFIX)


def write(path: Path, messages: Sequence[ChatMessage]) -> None:
    """Replaces a conversation's file.

    Raises:
        TranscriptError: it cannot be written.
    """
    lines = [json.dumps(message.to_json(), allow_nan=False) + "\n" for message in messages]
    try:
        make_directory(path.parent)
        replace_file(path, "".join(lines))
    except OSError as error:
        raise TranscriptError(
            f"the conversation cannot be saved to {path}: {error.strerror}",
            "check the disk and the permissions, or save it elsewhere",
        ) from error


def remove(path: Path) -> None:
    """Removes the file of a conversation that has become empty.

    Raises:
        TranscriptError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return
    except OSError as error:
        raise TranscriptError(
            f"the conversation {path} cannot be removed: {error.strerror}", "check the permissions"
        ) from error


def read(path: Path) -> list[ChatMessage]:
    """Reads a conversation's file. Fields that this version does not know are ignored.

    Raises:
        TranscriptError: it cannot be read, is damaged, or was written by a newer d3.
    """
    return _parse(path, CONVERSATION.read_text(path))


def read_whole_lines(path: Path) -> tuple[list[ChatMessage], str]:
    """As `read`, but does without a last line whose end is missing.

    Returns:
        The messages, and that line; empty if nothing is missing.
    """
    text = CONVERSATION.read_text(path)
    whole, _, last = text.rpartition("\n")
    if not (whole.strip() and last.strip()) or is_json(last):
        return _parse(path, text), ""
    return _parse(path, whole), last


def _parse(path: Path, text: str) -> list[ChatMessage]:
    name, hint = f"the conversation {path}", "d3 did not change the file: correct it or move it"
    for _, head in parse_rows(text, _Head, name=name, error=TranscriptError, hint=hint):
        if head.schema > SCHEMA:
            raise TranscriptError(
                f"{name} was written by a newer d3 (schema {head.schema}, this one reads {SCHEMA})",
                "update d3",
            )
    messages: list[ChatMessage] = []
    for number, message in parse_rows(
        text, ChatMessage, name=name, error=TranscriptError, hint=hint
    ):
        if message.role == "system" and messages:
            raise TranscriptError(
                f"{name}, line {number}: the system prompt must be the first message", hint
            )
        messages.append(message)
    if not messages:
        raise TranscriptError(f"{name} is empty", CONVERSATION.missing_hint)
    return messages


def all_conversations() -> list[Summary]:
    """Every saved conversation, the latest first, also those that cannot be read.

    Raises:
        TranscriptError: the directory cannot be read.
    """
    found = []
    for changed, path in _files():
        try:
            found.append(Summary(path.stem, changed, tuple(read_whole_lines(path)[0])))
        except TranscriptError as error:
            found.append(Summary(path.stem, changed, problem=error.message))
    return found


def latest() -> str:
    """The id of the conversation that changed last.

    Raises:
        UsageError: there is no conversation.
        TranscriptError: the directory cannot be read.
    """
    files = _files()
    if not files:
        raise UsageError("there is no conversation to continue", "start one: d3 chat")
    return files[0][1].stem


def find(id_: str) -> str:
    """The id of the only conversation whose id is, or begins with, this text.

    Raises:
        UsageError: no conversation matches, or more than one.
        TranscriptError: the directory cannot be read.
    """
    ids = [path.stem for _, path in _files()]
    matches = [id_] if id_ in ids else [one for one in ids if id_ and one.startswith(id_)]
    if len(matches) == 1:
        return matches[0]
    near = matches[:3] or get_close_matches(id_, ids, n=3)
    raise UsageError(
        f'more than one conversation begins with "{id_}"'
        if matches
        else f'there is no conversation "{id_}"',
        f"did you mean {' or '.join(near)}?" if near else CONVERSATION.missing_hint,
    )


def _files() -> list[tuple[float, Path]]:
    """Times and paths of all conversations, the latest first."""
    directory = _directory()
    dated = []
    try:
        for path in directory.iterdir():
            if path.suffix == SUFFIX and not path.name.startswith("."):
                with suppress(OSError):  # removed meanwhile, or a broken link
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode):
                        dated.append((status.st_mtime, path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TranscriptError(
            f"{directory} cannot be read: {error.strerror}", "check its permissions"
        ) from error
    return sorted(dated, reverse=True)


def _directory() -> Path:
    return state_dir() / "conversations"
