"""The one reader of files: it bounds their size, and says clearly what is wrong with a file.

Every file that d3 reads as a whole goes through a `FileKind`, a constant of the module that reads
such files::

    _CONVERSATION = FileKind(
        what="conversation", largest=64 << 20, error=TranscriptError, missing_hint="d3 chat --list"
    )
    text = _CONVERSATION.read_text(path)

`json_rows` reads rows and records from the text. Knows nothing of what files contain.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from d3cli.base.errors import D3Error, UsageError, Words
from d3cli.base.structure import UTF_16, binary_format

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A kind of file that d3 reads: its name in errors, its limit, and hints about bad files.

    Attributes:
        what: the noun for it in a message, such as ``"config file"``.
        largest: the most bytes it may have.
        error: the class of the errors raised.
        hint: what to do about any problem; empty for a default that suits the problem.
        missing_hint: what to do when there is no such file; empty for `hint`.
        large_hint: what to do when it is too large; empty for `hint`.
        expand_home: whether a leading ``~`` is a home directory, as for a path that the user typed.
        pipes: whether a pipe or a terminal may be read, as for ``--prompt-file <(command)``.
            Reading a pipe waits for its writer. Other devices, most of which have no end, are
            refused.
    """

    what: str
    largest: int
    error: type[D3Error] = UsageError
    hint: Words = ""
    missing_hint: Words = ""
    large_hint: Words = ""
    expand_home: bool = False
    pipes: bool = False

    def read(self, path: Path) -> bytes:
        """The file's bytes.

        Raises:
            D3Error: of the class `error`. The file is missing, a directory, not a regular file
                (unless `pipes` allows it), too large or unreadable.
        """
        data = self.find(path)
        if data is None:
            raise self._error(
                f"there is no {self.what} {path}", "check the path", self.missing_hint
            )
        return data

    def find(self, path: Path) -> bytes | None:
        """The file's bytes, or None if there is no such file.

        Raises:
            D3Error: as for `read`, and if the path is a link to a missing file.
        """
        subject = f"the {self.what} {path}"
        try:
            path = path.expanduser() if self.expand_home else path
            with path.open("rb") if self.pipes else open(path, "rb", opener=_at_once) as file:
                status = os.fstat(file.fileno())
                if not (stat.S_ISREG(status.st_mode) or self.pipes):
                    raise self._error(f"{subject} is not a regular file", "copy its text into one")
                if self.pipes and _is_device(file):
                    raise self._error(f"{subject} is a device", "give a file or a pipe")
                if status.st_size > self.largest:  # which need not be read to know that
                    raise self._too_large(subject)
                return self.read_stream(file, subject)
        except (FileNotFoundError, NotADirectoryError) as error:
            if path.is_symlink():
                raise self._error(f"{subject} is a broken link", "check the path") from error
            return None
        except IsADirectoryError as error:
            raise self._error(f"{subject} is a directory", "give a file") from error
        except (OSError, RuntimeError, ValueError) as error:  # no such home; a NUL in the name
            reason = getattr(error, "strerror", None) or error
            denied = isinstance(error, PermissionError)
            hint = "check its permissions" if denied else "check the path"
            raise self._error(f"{subject} cannot be read: {reason}", hint) from error

    def read_stream(self, stream: IO[bytes], subject: str) -> bytes:
        """The rest of an open stream, such as stdin; `subject` names it in a message.

        Raises:
            D3Error: of the class `error`, if it is too large.
            OSError: it cannot be read.
        """
        data = stream.read(self.largest + 1)
        if len(data) > self.largest:
            raise self._too_large(subject)
        return data

    def read_text(self, path: Path) -> str:
        """The file's text. A byte order mark at its beginning is dropped.

        Raises:
            D3Error: as for `read`, and if the text is not UTF-8.
        """
        return self.decode(self.read(path), f"the {self.what} {path}")

    def decode(self, data: bytes, subject: str) -> str:
        """Bytes as text. A byte order mark at its beginning is dropped.

        Raises:
            D3Error: of the class `error`, if they are not UTF-8. A well-known format is named.
        """
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            found = binary_format(data)
            if found and found != UTF_16:
                raise self.error(
                    f"{subject} is {found}", "unpack it, or save its content as UTF-8 text"
                ) from error
            raise self._error(
                f"{subject} is not UTF-8 text", "save it as UTF-8, or convert it with iconv"
            ) from error

    def _too_large(self, subject: str) -> D3Error:
        whole = self.largest % MIB == 0
        limit = f"{self.largest // MIB} MiB" if whole else f"{self.largest:,} bytes"
        return self._error(
            f"{subject} is larger than {limit}", "give a smaller file", self.large_hint
        )

    def _error(self, message: str, default_hint: str, hint: Words = "") -> D3Error:
        return self.error(message, hint or self.hint or default_hint)


def _is_device(file: IO[bytes]) -> bool:
    """Whether a file is a device such as /dev/zero: no terminal, and not /dev/null."""
    status = os.fstat(file.fileno())
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)) or file.isatty():
        return False
    return status.st_rdev != Path(os.devnull).stat().st_rdev


def _at_once(path: str, flags: int) -> int:
    """Opens a file. A pipe opens at once, instead of waiting until something writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
