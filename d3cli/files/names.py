"""Finds a model's files, a directory or a GGUF file: built in, local, cached or downloaded."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from d3cli.base.errors import DownloadError, ModelError, Setting, UnknownModelError, UsageError
from d3cli.base.settings import (
    BUILTIN,
    PATH_STARTS,
    aliases,
    looks_like_hub_id,
    nearest_aliases,
    shipped_aliases,
)
from d3cli.files.directory import check_directory, check_path, notes_on_directory
from d3cli.files.fingerprint import fingerprint, gguf_fingerprint
from d3cli.files.gguf import GgufModel, is_gguf, read_gguf
from d3cli.files.gguf_directory import first_part
from d3cli.files.hub import (
    at_revision,
    cached_commits,
    cached_snapshot,
    describe_repository,
    download,
)
from d3cli.files.json_files import OLLAMA
from d3cli.files.other_formats import no_such_file, not_a_model
from d3cli.files.safetensors import Description
from d3cli.files.vet_files import files_read, vet_files

# A revision becomes a part of URLs and of paths in the cache.
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]{0,200}")


# As ollama names models: smollm2:135m, or user/name:tag.
OLLAMA_NAME = re.compile(r"[a-z0-9][\w.-]*(/[\w.-]+)*:[\w.-]+", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that is on disk.

    Attributes:
        name: what to call it in messages.
        path: the directory with config.json and safetensors; or the GGUF file, of a split one the
            first part.
        identity: the same whichever name was used; see `model_identity`.
        revision: the commit, if it comes from the hub.
        builtin: whether it is the model that ships with d3cli.
        gguf: the headers of a GGUF file; None for safetensors.
    """

    name: str
    path: Path
    identity: str
    revision: str | None = None
    builtin: bool = False
    gguf: GgufModel | None = field(default=None, repr=False, compare=False)

    def vet(self) -> None:
        """Checks the files before transformers sees them; `find_model` has checked a GGUF file.

        Raises:
            ModelError: the model should not be used.
        """
        if self.gguf is None and not self.builtin:
            vet_files(self.path)

    def all_files(self) -> list[Path]:
        """Every file that d3 or transformers may read."""
        return list(files_read(self.path) if self.gguf is None else self.gguf.paths)

    def notes(self) -> list[str]:
        """What a user should know about the files: which of a directory's weights run.

        Raises:
            ModelError: the directory holds two models, and either may be out of date.
        """
        if self.gguf is not None or self.builtin:
            return []
        return notes_on_directory(self.path, from_hub=self.revision is not None)

    def fingerprint(self) -> str:
        """Tells whether a stored calibration still fits the model; see `files.fingerprint`.

        Raises:
            ModelError: a file is missing or damaged.
        """
        return fingerprint(self.path) if self.gguf is None else gguf_fingerprint(self.gguf)

    @property
    def is_known(self) -> bool:
        """Whether it is the built-in model or has an alias in d3, so that it is trusted."""
        return self.builtin or self.identity in shipped_aliases().values()


def find_model(
    name: str,
    *,
    offline: bool = False,
    revision: str | None = None,
    check: Callable[[Description], object] | None = None,
) -> ModelFiles:
    """Finds a model's files; downloads a hub model that is not complete on disk.

    Args:
        name: an alias, a hub id, a directory or a GGUF file.
        offline: never use the network.
        revision: a branch, a tag or a commit of a model on the hub; None for the default branch.
        check: is called with the hub's description of a model before its weights are downloaded,
            and raises if the model cannot be used.

    Raises:
        UnknownModelError: there is no model of that name, or no such revision.
        UsageError: the model is not on the hub, so it has no revisions.
        ModelError: the directory or the file does not hold a usable model.
        DownloadError: the hub cannot be reached or refuses access.
    """
    files = find_on_disk(name, revision)
    if files is not None:
        return files
    hub_id = aliases().get(name, name)
    if offline:
        command = f"hf download {hub_id}"
        if revision:
            command = f"hf download {hub_id} --revision {revision}"
        there = "complete in" if cached_commits(hub_id) else "in"
        raise DownloadError(
            (
                f"{at_revision(hub_id, revision)} is not {there} the local cache, and ",
                Setting("offline"),
                " forbids downloading it",
            ),
            ("leave out ", Setting("offline"), f", or run: {command}", *_or_another_commit(hub_id)),
        )
    if check is not None:
        check(describe_repository(hub_id, revision))
    return _from_hub(name, hub_id, download(hub_id, revision))


def _or_another_commit(hub_id: str) -> tuple[str | Setting, ...]:
    """The end of a hint: a complete commit of a model in the cache, which nothing asked for."""
    for commit in cached_commits(hub_id):
        if cached_snapshot(hub_id, commit) is not None:
            return (", or use the commit that is there: ", Setting("revision", commit))
    return ()


def find_on_disk(name: str, revision: str | None = None) -> ModelFiles | None:
    """Finds a model without the network; None if it is not complete in the hub's cache.

    Args:
        revision: as for `find_model`.

    Raises:
        UnknownModelError, UsageError, ModelError: as for `find_model`.
    """
    local = find_local(name)
    if local is not None:
        if revision is not None:
            raise UsageError(
                (f"{local.name} has no revisions, so ", Setting("revision"), " cannot choose one"),
                ("name a model of the hub, or leave out ", Setting("revision")),
            )
        return local
    if revision is not None and not REVISION.fullmatch(revision):
        raise UsageError(
            (Setting("revision"), f" is {revision!r:.60}, which cannot be a revision"),
            "give a branch, a tag or a commit",
        )
    hub_id = aliases().get(name, name)
    snapshot = cached_snapshot(hub_id, revision)
    return None if snapshot is None else _from_hub(name, hub_id, snapshot)


def _from_hub(name: str, hub_id: str, snapshot: Path) -> ModelFiles:
    gguf = gguf_in(snapshot)
    path = snapshot if gguf is None else gguf.paths[0]
    return ModelFiles(name, path, hub_id, revision=snapshot.name, gguf=gguf)


def model_identity(name: str) -> str:
    """One name for a model, whichever name was used. Its calibrations are stored under it.

    It is "demo" for the built-in model, the resolved path of a GGUF file or of a directory of
    safetensors, else the hub id. The model need not be on disk.
    """
    target = BUILTIN if name == BUILTIN else aliases().get(name, name)
    if target == BUILTIN:
        return BUILTIN
    try:
        path = Path(target).expanduser()
        if target and path.is_dir():
            with suppress(ModelError):  # what it holds is not known
                path = check_directory(path) or path
        elif not (target.startswith(PATH_STARTS) or path.suffix == ".gguf" or is_gguf(path)):
            return target
        return str(first_part(path).resolve()) if target else target
    except (OSError, RuntimeError, ValueError):  # too long for a path, no home, a NUL
        return target


def find_local(name: str) -> ModelFiles | None:
    """Finds the built-in model, a directory or a GGUF file; None if only the hub can have the name.

    This is quick and needs no network, so that it can report a wrong name or a broken file before
    anything slow begins.

    Raises:
        UnknownModelError, ModelError: as for `find_model`.
    """
    target = BUILTIN if name == BUILTIN else aliases().get(name, name)
    if target == BUILTIN:
        own = Path(str(files("d3cli") / "builtin"))
        return ModelFiles("the built-in model", own, BUILTIN, builtin=True)
    path = _as_path(target)
    if path is not None:
        check_path(path)
        gguf = read_gguf(path) if path.is_file() else gguf_in(path)
        place = path if gguf is None else gguf.paths[0]
        return ModelFiles(name, place, str(place.resolve()), gguf=gguf)
    if looks_like_hub_id(target):
        return None
    if OLLAMA_NAME.fullmatch(target):
        raise UnknownModelError(
            f'"{target}" is the form of a name in ollama, which d3 does not know',
            f"if ollama has it, {OLLAMA.format(target)}",
        )
    near = nearest_aliases(name)
    stands_for = "" if target == name else f', which "{name}" stands for'
    raise UnknownModelError(
        f'there is no model or directory called "{target}"{stands_for}',
        f"did you mean {' or '.join(near)}?"
        if near
        else "give an alias, a hub id such as org/name, a directory or a GGUF file",
    )


def gguf_in(directory: Path) -> GgufModel | None:
    """The GGUF model that runs from a directory; None if its safetensors run.

    Raises:
        ModelError: there is neither, or several GGUF files.
    """
    path = check_directory(directory)
    return None if path is None else read_gguf(path)


def _as_path(target: str) -> Path | None:
    """The directory or the GGUF file that `target` names; None if it is not a path.

    Raises:
        UnknownModelError: it is the path of another file, or of nothing.
    """
    if not target:  # Path("") would be the current directory
        return None
    try:
        path = Path(target).expanduser()
        if path.is_dir() or is_gguf(path):
            return path
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):
        return None
    if exists:
        raise not_a_model(path)
    if path.suffix.lower() == ".gguf":
        raise no_such_file(path)
    if target.startswith(PATH_STARTS):
        raise UnknownModelError(f"there is no file or directory {target}", "check the path")
    return None
