"""Text files that stand before the user's next message. Knows nothing of commands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d3cli.base.bounded_files import FileKind
from d3cli.base.errors import ContextFullError, UsageError
from d3cli.base.inert import inert

_FILE = FileKind(what="file", largest=64 << 20, large_hint="attach a part of it", expand_home=True)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text file as it was read: its name without directories, its text, its size in tokens."""

    name: str
    text: str
    tokens: int


def read_attachment(path: Path, tokenizer: Any, room: int) -> Attachment:
    """Reads a text file.

    Args:
        room: how many tokens it may have.

    Raises:
        UsageError: it cannot be read, is not text, is empty or has too many tokens.
    """
    from d3cli.text.tokens import check_length, encode_in_pieces

    text = _FILE.read_text(path)
    if "\0" in text:
        raise UsageError(f"the file {path} is not text: it holds NUL bytes", "attach a text file")
    if not text.strip():
        raise UsageError(f"the file {path} has no text", "attach a file with text")
    try:
        check_length(tokenizer, text, max(room, 1))
    except ContextFullError as error:
        raise _too_large(path, f"at least {error.tokens:,}", room) from error
    tokens = sum(1 for _ in encode_in_pieces(tokenizer, text))
    if tokens >= room:
        raise _too_large(path, f"{tokens:,}", room)
    # On one line, and valid Unicode: it becomes a part of the message.
    return Attachment(inert(" ".join(path.name.split())), text.strip("\r\n"), tokens)


def _too_large(path: Path, tokens: str, room: int) -> UsageError:
    return UsageError(
        f"the file {path} has {tokens} tokens, and the context has room for {max(room, 0):,} more",
        'attach a shorter file; /attach "" removes other files, /clear begins a new conversation',
    )


@dataclass(slots=True)
class Attachments:
    """The files that stand before the next message.

    Attributes:
        files: by their paths.
    """

    files: dict[Path, Attachment] = field(default_factory=dict)
    _sent: dict[str, tuple[str, dict[Path, Attachment]]] = field(default_factory=dict)

    def tokens(self, without: Path) -> int:
        """The size of all files but one."""
        return sum(one.tokens for path, one in self.files.items() if path != without)

    def put_before(self, message: str) -> str:
        """The message with the files before it, each after its name; then none are attached."""
        if not self.files:
            return message
        parts = [f"{one.name}:\n\n{one.text}" for one in self.files.values()]
        whole = "\n\n".join([*parts, message])
        self._sent[whole] = (message, self.files)
        self.files = {}
        return whole

    def take_back(self, whole: str) -> str:
        """A message that was sent, as it was typed; its files are attached again."""
        message, files = self._sent.pop(whole, (whole, {}))
        self.files = files | self.files
        return message

    def clear(self) -> None:
        """Removes the files, and forgets those that were sent."""
        self.files, self._sent = {}, {}
