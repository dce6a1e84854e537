"""Conversations on disk: one file each, one JSON line a message, 0600.

A file is replaced as a whole whenever a message is added, so that a crash leaves the old one or the
new one. Knows nothing of models or terminals; no torch.
"""

import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from d3cli.base.atomic_files import make_directory, replace_file
from d3cli.base.errors import TranscriptError, UsageError
from d3cli.base.settings import state_dir

SCHEMA = 1
LARGEST_FILE = 64 << 20
SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation.

    Attributes:
        model: of a reply, the identity of the model that wrote it.
        finish_reason, schedule, stats: of a reply, as in ``d3 generate --json``.

    Raises:
        ValueError: a field is of another type.
    """

    role: Literal["system", "user", "assistant"]
    content: str
    model: str | None = None
    finish_reason: str | None = None
    schedule: Mapping[str, Any] | None = None
    stats: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _require(self.role in ("system", "user", "assistant"), "role")
        _require(isinstance(self.content, str), "content")
        self.content.encode()  # half a surrogate pair is no text; UnicodeEncodeError, a ValueError
        for name in ("model", "finish_reason"):
            value = getattr(self, name)
            _require(value is None or isinstance(value, str), name)
            (value or "").encode()
        for name in ("schedule", "stats"):
            value = getattr(self, name)
            _require(value is None or isinstance(value, dict), name)

    def to_json(self) -> dict[str, Any]:
        """A plain object; what only replies have is left out elsewhere."""
        message: dict[str, Any] = {"schema": SCHEMA, "role": self.role, "content": self.content}
        if self.role == "assistant":
            message |= {
                "model": self.model,
                "finish_reason": self.finish_reason,
                "schedule": self.schedule,
                "stats": self.stats,
            }
        return message

    @classmethod
    def from_json(cls, line: Any) -> "ChatMessage":
        """Reads what `to_json` wrote; fields that it does not know are passed over.

        Raises:
            ValueError: it is no message, or a newer d3 wrote it.
        """
        _require(isinstance(line, dict), "message")
        schema = line.get("schema")
        _require(type(schema) is int and schema >= 1, "schema")
        if schema > SCHEMA:
            raise ValueError(f"a newer d3 wrote it (schema {schema})")
        fields = ("role", "content", "model", "finish_reason", "schedule", "stats")
        return cls(**{name: line.get(name) for name in fields})


@dataclass(frozen=True, slots=True)
class Summary:
    """What a list of conversations says of one.

    Attributes:
        changed: when its last message was added, in seconds since 1970.
        problem: why it cannot be read; empty where it can.
    """

    id: str
    changed: float
    messages: tuple[ChatMessage, ...] = ()
    problem: str = ""

    @property
    def title(self) -> str:
        """The first line that the user wrote."""
        first = next((one.content for one in self.messages if one.role == "user"), "")
        return first.strip().partition("\n")[0]

    @property
    def model(self) -> str | None:
        """The model that wrote the last reply."""
        return last_model(self.messages)


def last_model(messages: Sequence[ChatMessage]) -> str | None:
    """The identity of the model that wrote the last reply; None where there is none."""
    return next((one.model for one in reversed(messages) if one.role == "assistant"), None)


def new_id() -> str:
    """Sortable by time, and no two alike: ``20261121-134259-3f2a``."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def path_of(id_: str) -> Path:
    """Where the conversation of this id is, or would be."""
    return _directory() / (id_ + SUFFIX)


def write(path: Path, messages: Sequence[ChatMessage]) -> None:
    """Replaces a conversation's file at once.

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
            "check the disk and the permissions; /save FILE saves it elsewhere, --no-save not at "
            "all",
        ) from error


def remove(path: Path) -> None:
    """Removes a conversation of which nothing is left.

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
    """The messages of a conversation's file.

    Raises:
        TranscriptError: it cannot be read, is damaged, or a newer d3 wrote it.
    """
    number = 0
    try:
        # Without waiting for whoever would write into a pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TranscriptError(f"{path} is no file", "give the file of a conversation")
            data = file.read(LARGEST_FILE + 1)
        _require(len(data) <= LARGEST_FILE, "size")
        messages = []
        for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
            if not line:  # after the last line's end
                continue
            message = ChatMessage.from_json(json.loads(line, parse_constant=_no_constant))
            _require(message.role != "system" or number == 1, "order")
            messages.append(message)
    except FileNotFoundError:
        raise TranscriptError(f"there is no conversation {path}", "d3 chat --list") from None
    except OSError as error:
        raise TranscriptError(
            f"the conversation {path} cannot be read: {error.strerror}", "check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        newer = "a newer d3" in str(error)
        reason = str(error) if newer else f"line {number} is damaged" if number else "it is no text"
        raise TranscriptError(
            f"the conversation {path} cannot be used: {reason}",
            "update d3" if newer else "it was left as it is; correct it, or move it away",
        ) from error
    if not messages:
        raise TranscriptError(f"the conversation {path} is empty", "d3 chat --list")
    return messages


def all_conversations() -> list[Summary]:
    """Every conversation, the latest first; one that cannot be read stands there with its problem.

    Raises:
        TranscriptError: the directory cannot be read.
    """
    found = []
    for changed, path in _files():
        try:
            found.append(Summary(path.stem, changed, tuple(read(path))))
        except TranscriptError as error:
            found.append(Summary(path.stem, changed, problem=error.message))
    return found


def latest() -> str:
    """The id of the conversation that changed last.

    Raises:
        UsageError: there is none.
        TranscriptError: the directory cannot be read.
    """
    files = _files()
    if not files:
        raise UsageError("there is no conversation to go on with", "start one: d3 chat")
    return files[0][1].stem


def find(id_: str) -> str:
    """The id of the one conversation whose id is this or begins so.

    Raises:
        UsageError: there is none, or more than one.
        TranscriptError: the directory cannot be read.
    """
    ids = [path.stem for _, path in _files()]
    begins = [id_] if id_ in ids else [one for one in ids if id_ and one.startswith(id_)]
    if len(begins) == 1:
        return begins[0]
    near = begins[:3] or get_close_matches(id_, ids, n=3)
    raise UsageError(
        f'{"more than one" if begins else "no"} conversation is called "{id_}"',
        f"did you mean {' or '.join(near)}?" if near else "d3 chat --list shows them",
    )


@contextmanager
def in_use(id_: str) -> Iterator[None]:
    """Keeps a conversation for this process while it goes on.

    Raises:
        UsageError: another d3 has it.
    """
    try:
        make_directory(_directory())
        lock = FileLock(_directory() / f".{id_}.lock", mode=0o600)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"the conversation {id_} is open in another d3 chat",
            "leave that one first, or start a new one: d3 chat",
        ) from None
    except (OSError, NotImplementedError):  # a home without writing or locks; saving will say so
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove what is open
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _files() -> list[tuple[float, Path]]:
    directory = _directory()
    dated = []
    try:
        for path in directory.iterdir():
            if path.suffix == SUFFIX and not path.name.startswith("."):
                status = _status(path)
                if status is not None and stat.S_ISREG(status.st_mode):
                    dated.append((status.st_mtime, path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TranscriptError(
            f"{directory} cannot be read: {error.strerror}", "check its permissions"
        ) from error
    return sorted(dated, reverse=True)


def _status(path: Path) -> os.stat_result | None:
    """None for what is gone since the directory was read, or leads nowhere."""
    try:
        return path.stat()
    except OSError:
        return None


def _directory() -> Path:
    return state_dir() / "conversations"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _require(valid: bool, name: str) -> None:
    if not valid:
        raise ValueError(f"{name} is not what it should be")
