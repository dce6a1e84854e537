"""What takes how much disk, and the command that removes it: the hub's cache, and local models."""

import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from d3cli.base.errors import D3Error
from d3cli.files.names import ModelFiles, find_on_disk


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Something on disk.

    Attributes:
        name: the model, by which d3 finds it; or what it is.
        size_bytes: of all its files.
        path: where it is.
        remove: the command that removes it.
    """

    name: str
    size_bytes: int
    path: str
    remove: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something on disk that looks like a model and is none.

    Attributes:
        name: the path, as the user writes it.
        problem: why.
    """

    name: str
    problem: str


def hub_use() -> list[DiskUse]:
    """All models in the hub's cache, also those that d3 cannot run, and unfinished downloads."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = [
        DiskUse(
            repository.repo_id,
            repository.size_on_disk,
            str(repository.repo_path),
            shlex.join(["hf", "cache", "rm", f"model/{repository.repo_id}"]),
        )
        for repository in repositories
        if repository.repo_type == "model"
    ]
    cache = Path(constants.HF_HUB_CACHE)
    unfinished = sum(map(_size, cache.glob("models--*/blobs/*.incomplete")))
    if unfinished:
        found.append(DiskUse("unfinished downloads", unfinished, str(cache), "hf cache prune"))
    return found


def local_use(name: str) -> DiskUse | Unreadable | None:
    """A model in a directory or a GGUF file of the user; None for any other, and for none."""
    try:
        files = find_on_disk(name)
    except D3Error as error:
        return Unreadable(name, error.message) if _is_path(name) else None
    if files is None or files.builtin or files.revision is not None:
        return None
    return _use(name, files)


def _use(name: str, files: ModelFiles) -> DiskUse:
    if files.gguf is not None:
        parts = list(files.gguf.paths)
        command = ["rm", *(str(part.absolute()) for part in parts)]
    else:
        parts = [part for part in files.path.rglob("*") if part.is_file() and not part.is_symlink()]
        command = ["rm", "-r", str(files.path.absolute())]
    size = sum(map(_size, parts))
    return DiskUse(name, size, str(files.path.absolute()), shlex.join(command))


def disk_use(names: Iterable[str]) -> tuple[list[DiskUse], list[Unreadable]]:
    """The hub's cache and the local models of these names, the largest first; and what is none."""
    local = list(map(local_use, names))
    models = [use for use in local if isinstance(use, DiskUse)]
    once = {use.path: use for use in (*models, *hub_use())}
    found = sorted(once.values(), key=lambda use: (-use.size_bytes, use.name))
    return found, [use for use in local if isinstance(use, Unreadable)]


def _is_path(name: str) -> bool:
    with suppress(OSError, RuntimeError, ValueError):  # such as a name that is too long
        return Path(name).expanduser().exists()
    return False


def _size(path: Path) -> int:
    with suppress(OSError):  # removed meanwhile
        return path.stat().st_size
    return 0
