"""Files written so that a crash leaves the old one or the new one, never half of one."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def make_directory(path: Path) -> None:
    """Makes a directory and those above it, each 0700; what is there already stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)  # with parents=True only the last would get its mode


def replace_file(path: Path, text: str) -> None:
    """Writes a 0600 file at once: a crash at any moment leaves the old one or the new one whole.

    A kill may leave a temporary file beside it, whose name is ``.NAME.``, cut, and a random end.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")  # 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system can sync a directory; the file is whole without
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
