"""From a model's name to a directory with its files: built in, local, cached or downloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from d3cli.base.errors import DownloadError, ModelError, UnknownModelError
from d3cli.base.settings import (
    BUILTIN,
    PATH_STARTS,
    aliases,
    looks_like_hub_id,
    nearest_aliases,
    shipped_aliases,
)
from d3cli.depth.families import find_family
from d3cli.files.hub import cached_snapshot, describe_repository, download
from d3cli.files.json_files import BROKEN_FILES, read_json
from d3cli.files.safetensors import Description, missing_weights

GGUF_HINT = (
    "get the same model as safetensors: the hub repository that it was converted from has them, "
    "and its page names it"
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that is on disk.

    Attributes:
        name: what to call it before the user.
        path: the directory with config.json and the weights.
        identity: the same for all its names; see `model_identity`.
        revision: the commit, where it comes from the hub.
        builtin: whether it is the model that ships with d3cli.
    """

    name: str
    path: Path
    identity: str
    revision: str | None = None
    builtin: bool = False

    @property
    def is_known(self) -> bool:
        """Whether it is the built-in model or one that d3 has an alias for: not a stranger's."""
        return self.builtin or self.identity in shipped_aliases().values()


def find_model(
    name: str,
    *,
    offline: bool = False,
    check: Callable[[Description], object] | None = None,
) -> ModelFiles:
    """Finds a model's files, downloading them where they are a hub id and not complete on disk.

    Args:
        name: an alias, a hub id or a directory.
        offline: never touch the network.
        check: is shown what the hub says of a model before its weights are fetched, and raises
            where it cannot be used.

    Raises:
        UnknownModelError: nothing has that name.
        ModelError: the directory is no usable model.
        DownloadError: the hub cannot or will not give the files.
    """
    files = find_on_disk(name)
    if files is not None:
        return files
    hub_id = aliases().get(name, name)
    if offline:
        raise DownloadError(
            f"{hub_id} is not complete in the local cache, and --offline forbids fetching it",
            f"without --offline it is downloaded; or run: hf download {hub_id}",
        )
    if check is not None:
        check(describe_repository(hub_id))
    return _from_hub(name, hub_id, download(hub_id))


def find_on_disk(name: str) -> ModelFiles | None:
    """The model of this name without any network; None where the hub's cache has not all of it.

    Raises:
        UnknownModelError, ModelError: as for `find_model`.
    """
    local = find_local(name)
    if local is not None:
        return local
    hub_id = aliases().get(name, name)
    snapshot = cached_snapshot(hub_id)
    return None if snapshot is None else _from_hub(name, hub_id, snapshot)


def _from_hub(name: str, hub_id: str, snapshot: Path) -> ModelFiles:
    _check_directory(snapshot)
    return ModelFiles(name, snapshot, hub_id, revision=snapshot.name)


def model_identity(name: str) -> str:
    """What a model is called whichever of its names is used: its calibrations are kept under it.

    "demo" for the built-in model, the resolved path of a directory, else the hub id. The model
    need not be on disk any more.
    """
    if name == BUILTIN:
        return BUILTIN
    target = aliases().get(name, name)
    try:
        path = Path(target).expanduser()
        is_path = target.startswith(PATH_STARTS) or (bool(target) and path.is_dir())
        return str(path.resolve()) if is_path else target
    except (OSError, RuntimeError, ValueError):  # too long for a path, no home, a NUL
        return target


def find_local(name: str) -> ModelFiles | None:
    """The built-in model or a directory; None for what can only be a model on the hub.

    Quick, and needs no network: a wrong name or a broken directory is found before anything slow.

    Raises:
        UnknownModelError, ModelError: as for `find_model`.
    """
    if name == BUILTIN:
        path = Path(str(files("d3cli") / "builtin"))
        return ModelFiles("the built-in model", path, BUILTIN, builtin=True)
    target = aliases().get(name, name)
    directory = _as_directory(target)
    if directory is not None:
        _check_directory(directory)
        return ModelFiles(name, directory, str(directory.resolve()))
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
        family = find_family(str(config["model_type"]))
        missing = missing_weights(snapshot)
    except ModelError as error:
        return error.message
    if missing:
        return f"incomplete: lacks {missing[0]}"
    return "" if family.can_skip else "not proven: --alpha off only"


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
    if exists and path.suffix.lower() == ".gguf":
        raise ModelError(f"{target} is a GGUF file, which d3 cannot read", GGUF_HINT)
    if exists:
        raise UnknownModelError(
            f"{target} is a file, not a model directory", "give the directory that holds it"
        )
    if target.startswith(PATH_STARTS):
        raise UnknownModelError(f"there is no directory {target}", "check the path")
    return None


def _check_directory(directory: Path) -> None:
    try:
        str(directory.resolve()).encode()
    except UnicodeEncodeError:
        raise ModelError(
            f"the name of {directory} is not UTF-8, so its weights cannot be read", "rename it"
        ) from None
    has_config = (directory / "config.json").is_file()
    missing = missing_weights(directory)
    gguf = next(directory.glob("*.gguf"), None)
    if gguf is not None and (missing or not has_config):
        raise ModelError(f"{directory} holds a GGUF file, which d3 cannot read", GGUF_HINT)
    if not has_config:
        raise ModelError(
            f"{directory} is no model directory: it has no config.json",
            "give the directory that holds config.json and *.safetensors",
        )
    if missing:
        pickles = [*directory.glob("*.bin"), *directory.glob("*.pth")]
        raise ModelError(
            f"{directory} lacks {', '.join(missing[:3])}",
            f"it has {pickles[0].name}, but only safetensors are read: pickled weights can run code"
            if pickles
            else BROKEN_FILES,
        )
