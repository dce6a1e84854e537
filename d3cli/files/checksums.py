"""Compares a model's files with the checksums that the hub sent with them.

The hub's cache names each file by its checksum. A download into another directory keeps the
checksums in metadata files. Knows nothing of what the files mean.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from d3cli.base.errors import ModelError
from d3cli.base.progress import ByteProgress, OnProgress
from d3cli.files.json_files import model_file
from d3cli.files.vet_files import files_read

METADATA = ".cache/huggingface/download"  # of `hf download --local-dir`
LARGEST_RECORD = 1 << 16  # bytes: it has three lines
PIECE = 1 << 22


def verify(directory: Path, on_progress: OnProgress | None = None) -> int:
    """Compares all files of a model with their checksums; returns the number of files.

    Raises:
        ModelError: a file differs from its checksum, or has none.
    """
    files = list(files_read(directory))
    progress = ByteProgress(sum(file.stat().st_size for file in files), on_progress)
    for file in files:
        known = _known(file, directory)
        if known is None:
            raise ModelError(
                f"{file} has no checksum to compare it with",
                "only files from the hub's cache or from hf download --local-dir can be verified",
            )
        if _checksum(file, known, progress) != known:
            raise ModelError(
                f"{file} is not the file that the hub sent: its checksum differs",
                "delete it and download the model again",
            )
    return len(files)


def _known(file: Path, directory: Path) -> str | None:
    """The file's SHA-256 (large files) or git's SHA-1 of a blob (small ones), from the hub."""
    if file.is_symlink() and _is_checksum(file.readlink().name):
        return file.readlink().name
    record = directory / METADATA / f"{file.relative_to(directory)}.metadata"
    lines = (model_file(LARGEST_RECORD).find(record) or b"").decode(errors="replace").splitlines()
    etag = lines[1].strip().removeprefix("W/").strip('"') if len(lines) > 1 else ""
    return etag if _is_checksum(etag) else None


def _is_checksum(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None


def _checksum(file: Path, known: str, progress: ByteProgress) -> str:
    if len(known) == hashlib.sha256().digest_size * 2:
        digest = hashlib.sha256()
    else:  # git's checksum, which does not stop an attacker who can make collisions
        digest = hashlib.sha1(usedforsecurity=False)
        digest.update(b"blob %d\0" % file.stat().st_size)
    for piece in _pieces(file):
        digest.update(piece)
        progress.add(len(piece))
    return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece
