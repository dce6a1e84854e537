"""Writes files so that a crash leaves the old file or the new one, never a part of one."""

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def make_directory(path: Path) -> None:
    """Makes a directory and its missing parents, each with mode 0700. Existing ones do not change.

    Raises:
        OSError: it cannot be made.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)  # parents=True would not set the parents' mode


def beginning_of(path: Path) -> str:
    """The beginning of a file's name, at most 64 bytes, so that something can be added to it."""
    whole_characters = os.fsencode(path.name)[:64].decode(errors="ignore")
    return os.fsdecode(whole_characters.encode())  # the locale may have ASCII only


def replace_file(path: Path, text: str) -> None:
    """Writes a file with mode 0600; a crash at any moment leaves the old file or the new one.

    Raises:
        OSError: it cannot be written. The old file is still there.
    """
    replace_file_by_parts(path, [text.encode()])


def replace_file_by_parts(path: Path, parts: Iterable[bytes]) -> None:
    """As `replace_file`, for a file that need not fit into memory.

    A kill may leave a temporary file beside it. Its name is ``.NAME.`` with a random ending; a long
    name is cut.

    Raises:
        OSError: it cannot be written. The old file is still there.
    """
    prefix = f".{beginning_of(path)}."
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=prefix)  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some systems cannot sync a directory; the file is whole anyway
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
