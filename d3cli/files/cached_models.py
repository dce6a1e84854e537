"""The models in the hub's local cache, for lists: their sizes, and why one cannot run."""

from dataclasses import dataclass
from pathlib import Path

from d3cli.base.errors import ModelError
from d3cli.depth.families import find_family
from d3cli.files.hub import has_only_gguf
from d3cli.files.json_files import read_json
from d3cli.files.names import gguf_in
from d3cli.files.safetensors import missing_weights


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in the hub's local cache.

    Attributes:
        hub_id: ``org/name``.
        size_bytes: its size on disk.
        problem: why d3 cannot run it, or what limits it; empty if there is none.
    """

    hub_id: str
    size_bytes: int
    problem: str = ""


def cached_models() -> list[CachedModel]:
    """The language models in the hub's local cache, sorted by name."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repository in repositories:
        newest = max(repository.revisions, key=lambda r: r.last_modified, default=None)
        if repository.repo_type == "model" and newest is not None:
            problem = _problem(newest.snapshot_path)
            if problem is not None:
                found.append(CachedModel(repository.repo_id, repository.size_on_disk, problem))
    return sorted(found, key=lambda model: model.hub_id.lower())


def _problem(snapshot: Path) -> str | None:
    """The `CachedModel.problem` of a snapshot; None if it is not a language model."""
    try:
        if has_only_gguf(snapshot):
            gguf_in(snapshot)
            return ""
        config = read_json(snapshot / "config.json")
        if "model_type" not in config:
            return None
        family = find_family(str(config["model_type"]))
        missing = missing_weights(snapshot)
    except ModelError as error:
        return error.message
    except OSError as error:  # no permission, or another process has just removed it
        return f"it cannot be read: {error.strerror or error}"
    if missing:
        return f"incomplete: lacks {missing[0]}"
    return "" if family.can_skip else "runs at full depth only"
