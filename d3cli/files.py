"""From a model's name to a directory with its files: built in, local, cached or downloaded.

Only safetensors weights, JSON and tokenizer files are ever fetched: nothing that could run code.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from d3cli.config import BUILTIN, PATH_STARTS, aliases, looks_like_hub_id, nearest_aliases
from d3cli.errors import DownloadError, ModelError, UnknownModelError
from d3cli.families import find_family

# merges.txt and *.model are tokenizers.
FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt"]
# Second copies of the weights: Mistral's own format, and whatever lies in subdirectories.
NOT_FETCHED = ["consolidated*", "*/*"]
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
INDEX = "model.safetensors.index.json"
BROKEN_FILES = "its files may be damaged or incomplete: fetch the model again"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that is on disk.

    Attributes:
        name: what to call it before the user.
        path: the directory with config.json and the weights.
        builtin: whether it is the model that ships with d3cli.
    """

    name: str
    path: Path
    builtin: bool = False


def find_model(name: str, *, offline: bool = False) -> ModelFiles:
    """Finds a model's files, downloading them where they are a hub id and not complete on disk.

    Args:
        name: an alias, a hub id or a directory.
        offline: never touch the network.

    Raises:
        UnknownModelError: nothing has that name.
        ModelError: the directory is no usable model.
        DownloadError: the hub cannot or will not give the files.
    """
    local = find_local(name)
    if local is not None:
        return local
    hub_id = aliases().get(name, name)
    snapshot = _cached_snapshot(hub_id)
    if snapshot is None:
        snapshot = _download(hub_id, offline)
    _check_directory(snapshot)
    return ModelFiles(name, snapshot)


def find_local(name: str) -> ModelFiles | None:
    """The built-in model or a directory; None for what can only be a model on the hub.

    Quick, and needs no network: a wrong name or a broken directory is found before anything slow.

    Raises:
        UnknownModelError, ModelError: as for `find_model`.
    """
    if name == BUILTIN:
        return ModelFiles("the built-in model", Path(str(files("d3cli") / "builtin")), builtin=True)
    target = aliases().get(name, name)
    directory = _as_directory(target)
    if directory is not None:
        _check_directory(directory)
        return ModelFiles(name, directory)
    if looks_like_hub_id(target):
        return None
    near = nearest_aliases(name)
    stands_for = "" if target == name else f', which "{name}" stands for'
    raise UnknownModelError(
        f'there is no model or directory called "{target}"{stands_for}',
        f"did you mean {' or '.join(near)}?"
        if near
        else "give an alias, a hub id such as org/name, or a directory",
    )


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in the hub's local cache.

    Attributes:
        hub_id: ``org/name``.
        size_bytes: what it takes on disk.
        problem: why d3 cannot run it; empty where it can.
    """

    hub_id: str
    size_bytes: int
    problem: str = ""


def cached_models() -> list[CachedModel]:
    """The language models in the hub's local cache, by name; other repositories are passed over."""
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
    """Why d3 cannot run what lies here: empty where it can, None where it is no language model."""
    try:
        config = read_json(snapshot / "config.json")
        if "model_type" not in config:
            return None
        find_family(str(config["model_type"]))
        missing = _missing_weights(snapshot)
    except ModelError as error:
        return error.message
    return f"incomplete: lacks {missing[0]}" if missing else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ModelError: it is damaged, or no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}", BROKEN_FILES) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object", BROKEN_FILES)
    return data


def _as_directory(target: str) -> Path | None:
    """The directory that `target` names; None where it is no path at all."""
    if not target:  # Path("") would be the current directory
        return None
    try:
        path = Path(target).expanduser()
        if path.is_dir():
            return path
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):
        return None
    if exists and path.suffix == ".gguf":
        raise ModelError(
            f"{target} is a GGUF file, which d3 cannot read",
            "get the same model as safetensors: the repository it was converted from has them",
        )
    if exists:
        raise UnknownModelError(
            f"{target} is a file, not a model directory", "give the directory that holds it"
        )
    if target.startswith(PATH_STARTS):
        raise UnknownModelError(f"there is no directory {target}", "check the path")
    return None


def _missing_weights(directory: Path) -> list[str]:
    """Weight files that the directory should have and has not; none for a complete model."""
    return [shard for shard in weight_files(directory) if not (directory / shard).is_file()]


def weight_files(directory: Path) -> list[str]:
    """The names of the safetensors files that a model's weights are in.

    Raises:
        ModelError: the index is damaged, or names a file outside the directory.
    """
    if not (directory / INDEX).exists():
        return ["model.safetensors"]
    index = read_json(directory / INDEX)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not isinstance(index.get("metadata"), dict):
        raise ModelError(
            f"{directory / INDEX} is damaged: it lacks weight_map or metadata", BROKEN_FILES
        )
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise ModelError(
                f"{directory / INDEX} names a file elsewhere: {name}",
                "weights must lie beside config.json; do not use this model",
            )
    return names


def _check_directory(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"{directory} is no model directory: it has no config.json",
            "give the directory that holds config.json and *.safetensors",
        )
    missing = _missing_weights(directory)
    if missing:
        others = [*directory.glob("*.bin"), *directory.glob("*.pth"), *directory.glob("*.gguf")]
        raise ModelError(
            f"{directory} lacks {', '.join(missing[:3])}",
            f"it has {others[0].name}, but only safetensors are read: pickled weights can run "
            "code, and GGUF is another format"
            if others
            else BROKEN_FILES,
        )


def _cached_snapshot(hub_id: str) -> Path | None:
    """The hub cache's copy, if it is complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = {"allow_patterns": FETCHED, "ignore_patterns": NOT_FETCHED}
    try:
        path = Path(snapshot_download(hub_id, **patterns, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None
    has_tokenizer = any((path / name).is_file() for name in TOKENIZERS)
    complete = (path / "config.json").is_file() and has_tokenizer and not _missing_weights(path)
    return path if complete else None


def _download(hub_id: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if offline:
        raise DownloadError(
            f"{hub_id} is not complete in the local cache, and --offline forbids fetching it",
            f"without --offline it is downloaded; or run: hf download {hub_id}",
        )
    try:
        return Path(snapshot_download(hub_id, allow_patterns=FETCHED, ignore_patterns=NOT_FETCHED))
    except GatedRepoError as error:
        raise DownloadError(
            f"{hub_id} is gated: its owner asks you to accept terms first",
            f"accept them at https://huggingface.co/{hub_id}, then run: hf auth login",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        near = nearest_aliases(hub_id.partition("/")[2])
        raise UnknownModelError(
            f"the hub has no model {hub_id}, or it is private",
            f"did you mean {' or '.join(near)}?" if near else "check the name; hf auth login",
        ) from error
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{hub_id} is not in the local cache, and the hub cannot be reached",
            "check the network, or give a directory",
        ) from error
    except (HTTPError, OSError) as error:  # a refused request, a cut connection, a full disk
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DownloadError(
            f"downloading {hub_id} failed: {first_line}",
            "run it again: files that are complete are kept",
        ) from error
