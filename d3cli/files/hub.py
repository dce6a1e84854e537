"""The Hugging Face hub: its local cache, descriptions of repositories, and downloads.

Only safetensors weights, JSON and tokenizer files are downloaded, none of which can run code.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d3cli.base.errors import DownloadError, ModelError, Setting, UnknownModelError
from d3cli.base.settings import nearest_aliases
from d3cli.files.directory import PICKLES, adapter_file, merge_hint
from d3cli.files.gguf import PART, is_gguf
from d3cli.files.json_files import read_json
from d3cli.files.safetensors import Description, TensorInfo, missing_weights
from d3cli.files.tokenizer_files import has_tokenizer

# merges.txt and *.model are tokenizers.
FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt"]
# Second copies of the weights: Mistral's own format, and all subdirectories.
NOT_FETCHED = ["consolidated*", "*/*"]
PREFERRED = "Q4_K_M"  # of the quantizations of a model in GGUF, the one to propose
# Seconds to wait for the hub's first answer, and before the second try.
PATIENCE, PAUSE = 10.0, 1.0
FIRST_SERVER_ERROR = 500  # of HTTP's status codes


def cached_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """The directory of a model in the local cache; None if it is not there or not complete.

    Args:
        revision: a branch, a tag or a commit; None for the default branch.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = {"allow_patterns": FETCHED, "ignore_patterns": NOT_FETCHED}
    try:
        path = Path(snapshot_download(hub_id, revision=revision, **patterns, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None
    if not (path / "config.json").is_file() or missing_weights(path) or not has_tokenizer(path):
        return path if has_only_gguf(path) else None
    return path


def cached_commits(hub_id: str) -> list[str]:
    """The commits of a model of which the local cache holds files, the newest first."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type="model"))
    try:
        found = [path for path in (repository / "snapshots").iterdir() if path.is_dir()]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []
    return [path.name for path in found]


def has_only_gguf(snapshot: Path) -> bool:
    """Whether a snapshot holds GGUF files, and no safetensors that a download would complete."""
    there = list(snapshot.iterdir())
    return any(map(is_gguf, there)) and not any(path.suffix == ".safetensors" for path in there)


def describe_repository(hub_id: str, revision: str | None = None) -> Description:
    """A model's config and tensors, from a few kilobytes of its files.

    Args:
        revision: as for `cached_snapshot`.

    Raises:
        UnknownModelError: the hub has no such model.
        DownloadError: the hub cannot be reached or refuses access.
        ModelError: the repository has no safetensors, or damaged ones.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        NotASafetensorsRepoError,
        SafetensorsParsingError,
    )

    with _translated_errors(hub_id, revision):
        _check_reachable(hub_id, revision)
        try:
            config = read_json(Path(hf_hub_download(hub_id, "config.json", revision=revision)))
            metadata = HfApi().get_safetensors_metadata(hub_id, revision=revision)
        except LocalEntryNotFoundError:  # an EntryNotFoundError that means: no network
            raise
        except (EntryNotFoundError, NotASafetensorsRepoError) as error:
            raise _no_safetensors(hub_id, revision) from error
        except SafetensorsParsingError as error:
            raise ModelError(
                f"the weights of {hub_id} are damaged on the hub", "look for another copy of it"
            ) from error
    tensors = [
        TensorInfo(name, info.dtype, tuple(info.shape))
        for shard in metadata.files_metadata.values()
        for name, info in shard.tensors.items()
    ]
    return Description(hub_id, config, tuple(tensors))


def _check_reachable(hub_id: str, revision: str | None) -> None:
    """Asks the hub for one answer, at most twice.

    The hub's own library would try for half a minute to reach a hub that is down.

    Raises:
        DownloadError: the hub cannot be reached, or answers with an error of its own.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    url = hf_hub_url(hub_id, "config.json", revision=revision)
    problem = ""
    for pause in (0.0, PAUSE):
        time.sleep(pause)
        try:
            answer = get_session().head(url, timeout=PATIENCE, follow_redirects=False)
        except OfflineModeIsEnabled:
            raise
        except (HTTPError, OSError) as error:
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
            if "timed out" in problem:
                break
        else:
            if answer.status_code < FIRST_SERVER_ERROR:
                return
            problem = f"it answers with HTTP error {answer.status_code}"
    raise DownloadError(
        f"{at_revision(hub_id, revision)} is not in the local cache, and the hub cannot be "
        f"reached: {problem}",
        "check the network, or use a model in a local directory",
    )


def _no_safetensors(hub_id: str, revision: str | None) -> ModelError:
    """The error for a repository without config.json or safetensors; says where else to look."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id, revision=revision)
    names = [file.rfilename for file in info.siblings or ()]
    base = info.card_data.get("base_model") if info.card_data else None
    original = base[0] if isinstance(base, list) and base else base
    if gguf := [name for name in names if name.endswith(".gguf") and "mmproj" not in name]:
        return _only_gguf(hub_id, gguf, original)
    if adapter := adapter_file(names):
        return ModelError(
            f"{hub_id} holds an adapter ({adapter}), which is only a part of a model",
            merge_hint(original),
        )
    other = f"try {original}, which it was made from" if original else "look for another copy of it"
    if "config.json" not in names:
        return ModelError(f"{hub_id} is not a model that d3 can read: it has no config.json", other)
    pickle = next((name for name in names if name.endswith(PICKLES)), None)
    instead = f", only {pickle}, and pickled weights can run code" if pickle else ""
    return ModelError(f"{hub_id} has no safetensors{instead}", other)


def _only_gguf(hub_id: str, names: list[str], original: object) -> ModelError:
    """The error for a repository of GGUF files; they are one model in many quantizations."""
    chosen = next((name for name in names if PREFERRED in name), names[0])
    part = PART.fullmatch(chosen)
    files = f'--include "{part["stem"]}*"' if part else chosen
    then = "then give the path that it prints" if "/" in chosen else "then run this again"
    other = f"; or use {original}, which it was converted from" if original else ""
    return ModelError(
        f"{hub_id} holds only GGUF files, and d3 does not choose which one to download",
        f"run: hf download {hub_id} {files}; {then}{other}",
    )


def download(hub_id: str, revision: str | None = None) -> Path:
    """Downloads a model's missing files into the cache; returns its directory.

    Args:
        revision: as for `cached_snapshot`.

    Raises:
        UnknownModelError: the hub has no such model.
        DownloadError: the hub cannot be reached or refuses access.
    """
    from huggingface_hub import snapshot_download

    patterns = {"allow_patterns": FETCHED, "ignore_patterns": NOT_FETCHED}
    with _translated_errors(hub_id, revision):
        return Path(snapshot_download(hub_id, revision=revision, **patterns))


def at_revision(name: str, revision: str | None) -> str:
    """A model and its revision in a message."""
    return f"{name} at {revision}" if revision else name


@contextmanager
def _translated_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    """Turns the hub's errors into ours, each with a hint."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise DownloadError(
            f"{at_revision(hub_id, revision)} is not in the local cache, and HF_HUB_OFFLINE "
            "forbids downloading it",
            "unset HF_HUB_OFFLINE, or use a model in a local directory",
        ) from error
    except GatedRepoError as error:
        raise DownloadError(
            f"{hub_id} is gated: you must accept its owner's terms first",
            f"accept them at https://huggingface.co/{hub_id}, then run: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownModelError(
            (f"{hub_id} has no ", Setting("revision", revision or "main")),
            f"its branches and tags are listed at https://huggingface.co/{hub_id}/tree/main",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        near = nearest_aliases(hub_id.partition("/")[2])
        raise UnknownModelError(
            f"the hub has no model {hub_id}, or it is private",
            f"did you mean {' or '.join(near)}?"
            if near
            else "check the name; for a private model, run: hf auth login",
        ) from error
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{at_revision(hub_id, revision)} is not in the local cache, and the hub cannot be "
            "reached",
            "check the network, or use a model in a local directory",
        ) from error
    except (HTTPError, OSError) as error:  # a refused request, a cut connection, a full disk
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DownloadError(
            f"downloading {at_revision(hub_id, revision)} failed: {first_line}",
            "run it again: complete files are kept",
        ) from error
