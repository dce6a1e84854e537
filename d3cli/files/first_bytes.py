"""What the first bytes of a file tell about it."""

from pathlib import Path

from d3cli.base.settings import GGUF_MAGIC


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins with GGUF's magic, whatever its name."""
    try:
        return path.is_file() and beginning(path, len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


def beginning(path: Path, length: int) -> bytes:
    """The first bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return file.read(length)
