"""Standard input: whether it may hold text, and how it is read to its end."""

import io
import os
import select
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from d3cli.cli.output import Output

# Names of stdin. Opening one as a file would read a regular file again, and fails for a socket.
NAMES = frozenset(map(Path, ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")))
PATIENCE = 2.0  # seconds without an end of the text, until a note says what is awaited


def is_fed() -> bool:
    """Whether stdin is a pipe or a file that can be read.

    A terminal or /dev/null holds no prompt. A socket may stay open as long as the program that
    started d3, so it is read only if the user asks for it.
    """
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
        os.read(descriptor, 0)  # fails if it is open for writing only
    except (OSError, ValueError, AttributeError):  # closed, or not a real stream
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def stream() -> IO[bytes] | None:
    """The bytes of stdin, to be read to their end; None if the shell closed it."""
    if sys.stdin is None:
        return None
    buffer: IO[bytes] = sys.stdin.buffer
    raw = getattr(buffer, "raw", None)
    return buffer if raw is None else io.BufferedReader(_Blocking(raw))


@contextmanager
def waiting(output: Output, where: str = "", hint: str = "") -> Iterator[None]:
    """Says once that text is awaited, if its body takes long; at a terminal at once.

    Args:
        where: the file that is read; empty for stdin.
        hint: what to do about it; empty for nothing.
    """
    text = f"waiting for text from {where}" if where else "waiting for text on stdin"
    if not where and sys.stdin is not None and sys.stdin.isatty():
        output.note(f"{text}; Ctrl-D ends it")
        yield
        return
    timer = threading.Timer(PATIENCE, output.note, [f"{text}; {hint}" if hint else text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Blocking(io.RawIOBase):
    """A raw stream that waits for its data.

    Another program that holds the same pipe may have made it non-blocking. Reading it would then
    look like its end.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, into: "memoryview[int]") -> int:  # type: ignore[override]
        while (count := self._raw.readinto(into)) is None:
            select.select([self._raw], [], [])
        return count
