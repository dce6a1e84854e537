"""Compares a model's files with the checksums that came with them.

The hub's cache names each file by its checksum, and so does ollama. A download from the hub into
another directory keeps the checksums in metadata files. Knows nothing of what the files mean.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from d3cli.base.errors import ModelError, UsageError
from d3cli.base.progress import ByteProgress, OnProgress
from d3cli.files.json_files import model_file

METADATA = ".cache/huggingface/download"  # of `hf download --local-dir`
LARGEST_RECORD = 1 << 16  # bytes: it has three lines
DEEPEST = 3  # directories between a file and the records of its download
OLLAMA = "sha256-"  # what the names of ollama's files begin with
PIECE = 1 << 22
VERIFIABLE = "only files from the hub's cache, from hf download --local-dir or from ollama have one"
STRANGE = "it did not come with them: remove it, or download the model again"


def verify(files: Sequence[Path], on_progress: OnProgress | None = None) -> int:
    """Compares all files of a model with their checksums; returns the number of files.

    Raises:
        UsageError: no file has a checksum.
        ModelError: a file differs from its checksum, or has none among files that have.
    """
    checksums = {file: _known(file) for file in files}
    if not any(checksums.values()):
        those = str(files[0]) if len(files) == 1 else f"{files[0]} and the files beside it"
        has, them = ("has", "it") if len(files) == 1 else ("have", "them")
        raise UsageError(f"{those} {has} no checksum to compare {them} with", VERIFIABLE)
    progress = ByteProgress(sum(file.stat().st_size for file in files), on_progress)
    for file, known in checksums.items():
        if known is None:
            raise ModelError(f"{file} has no checksum, and other files of the model have", STRANGE)
        if _checksum(file, known, progress) != known:
            raise ModelError(
                f"{file} is not the file that was published: its checksum differs",
                "delete it and download the model again",
            )
    return len(files)


def _known(file: Path) -> str | None:
    """The file's SHA-256 (large files) or git's SHA-1 of a blob (small ones)."""
    own = file.readlink().name if file.is_symlink() else file.name.removeprefix(OLLAMA)
    if (file.is_symlink() or file.name.startswith(OLLAMA)) and _is_checksum(own):
        return own
    for folder in [*file.absolute().parents][:DEEPEST]:
        record = folder / METADATA / f"{file.absolute().relative_to(folder)}.metadata"
        if data := model_file(LARGEST_RECORD).find(record):
            lines = data.decode(errors="replace").splitlines()
            etag = lines[1].strip().removeprefix("W/").strip('"') if len(lines) > 1 else ""
            return etag if _is_checksum(etag) else None
    return None


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
