"""What a model's directory holds: which weights run, and what lies beside them."""

import re
from pathlib import Path

from d3cli.base.errors import ModelError
from d3cli.files.fingerprint import same_weights
from d3cli.files.gguf_directory import only_gguf
from d3cli.files.json_files import BROKEN_LINK, OLLAMA, read_json, unreadable
from d3cli.files.safetensors import (
    INDEX,
    SINGLE_FILE,
    missing_weights,
    shards_of_index,
    unused_shards,
    weight_files,
)

PICKLE = "pytorch_model*.bin"  # as transformers saves them
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
# An adapter's weights, as PEFT and MLX name them.
ADAPTER = re.compile(r"adapters?(_model)?\.(safetensors|bin|npz)")
ADAPTER_CONFIG = "adapter_config.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def check_directory(directory: Path) -> Path | None:
    """Refuses a directory that does not hold a whole model.

    Returns:
        The GGUF file that runs; None if safetensors run, which come first.

    Raises:
        ModelError: naming what is missing, and what is there in its place.
    """
    check_path(directory)
    has_config = (directory / "config.json").is_file()
    if has_config and not missing_weights(directory):
        return None
    try:
        names = sorted(path.name for path in directory.iterdir())
        is_sharded = INDEX in names or any(map(SHARD.fullmatch, names))
        gguf = None if is_sharded else only_gguf(directory)
    except OSError as error:
        raise unreadable(directory, error) from error
    if gguf is not None:
        return gguf
    if adapter := adapter_file(names):
        raise _adapter_alone(directory, adapter)
    if not has_config:
        raise ModelError(
            f"{directory} is not a model directory: it has no config.json and no GGUF file",
            _other_directory(directory)
            or "give the directory that holds config.json and *.safetensors, or a GGUF file",
        )
    raise _without_weights(directory, names)


def check_path(path: Path) -> None:
    """Raises ModelError for a path that libraries cannot open and JSON cannot hold."""
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:
        raise ModelError(
            f"the path {path} is not UTF-8, so its weights cannot be read", "rename it"
        ) from None


def adapter_file(names: list[str]) -> str | None:
    """The name of the file that shows that these files of a directory include an adapter."""
    weights = next((name for name in names if ADAPTER.fullmatch(name)), None)
    return weights or (ADAPTER_CONFIG if ADAPTER_CONFIG in names else None)


def merge_hint(base: object) -> str:
    """What to do with an adapter for the model `base`, if that is known."""
    name = f", {base[:100]}" if isinstance(base, str) and base else ""
    return (
        f"merge it into its base model{name}, with the package peft: load it with "
        "AutoPeftModelForCausalLM, then save what merge_and_unload() returns"
    )


def _adapter_alone(directory: Path, file: str) -> ModelError:
    base = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    return ModelError(
        f"{directory} holds an adapter ({file}), which is only a part of a model", merge_hint(base)
    )


def _other_directory(directory: Path) -> str:
    """A hint that names the directory that was probably meant; empty if there is none."""
    cached = re.fullmatch(r"models--(.+?)--(.+)", directory.resolve().name)
    if cached and (directory / "snapshots").is_dir():
        return f"it belongs to the hub's cache: use the name {cached[1]}/{cached[2]}"
    inside = [path.parent for path in directory.glob("*/config.json")]
    if inside:
        newest = max(inside, key=lambda path: path.stat().st_mtime)
        return f"{newest} has one: give that directory"
    if any(directory.glob("blobs/sha256*")):
        return f"it is ollama's: {OLLAMA.format('NAME')}"
    files = sorted(directory.glob("*/*.gguf"))
    return f"{files[0].parent} holds {files[0].name}: give that file" if files else ""


def _without_weights(directory: Path, names: list[str]) -> ModelError:
    """The error for a directory whose weights are missing or in another form."""
    missing = missing_weights(directory)
    problem = f"{directory} lacks {', '.join(missing[:3])}"
    for name in missing:
        if (directory / name).is_symlink():
            return ModelError(f"{directory / name} is a broken link", BROKEN_LINK)
    others = [name for name in names if name.endswith(".safetensors") and name not in missing]
    if missing != [SINGLE_FILE]:
        return ModelError(
            f"{problem}, which {INDEX} lists",
            "copy the missing files, or download the model again: complete files are kept",
        )
    if any(SHARD.fullmatch(name) for name in others):
        return ModelError(
            f"{directory} lacks {INDEX}, which says what {others[0]} and its other shards hold",
            "copy the index from where the shards come from",
        )
    if others:
        return ModelError(
            f"{problem}; it holds {others[0]}, which is not in the format of transformers",
            "use a copy of the model that was saved with save_pretrained",
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return ModelError(
            problem,
            f"d3 reads only safetensors and GGUF, not {pickles[0]}: pickled weights can run code",
        )
    return ModelError(problem, "copy the weights into it, or download the model again")


def notes_on_directory(directory: Path, *, from_hub: bool) -> list[str]:
    """What a user should know about a directory: which of its weights run.

    Args:
        directory: it has been checked by `vet_files`.
        from_hub: whether it is a copy of a repository of the hub.

    Raises:
        ModelError: the directory holds two models, and either may be out of date.
    """
    notes = _choice_of_weights(directory, from_hub=from_hub)
    used = weight_files(directory)
    written = max(_time_of(directory / name) for name in used)
    newer = [file for file in directory.glob(PICKLE) if _time_of(file) > written]
    if newer and not from_hub:  # transformers, too, takes the safetensors
        name = min(newer).name
        notes.append(f"{name} was written after {used[-1]}, which runs: d3 reads only safetensors")
    names = sorted(path.name for path in directory.iterdir())
    single = used == [SINGLE_FILE]
    runs = f"{SINGLE_FILE} runs" if single else f"the shards of {INDEX} run"
    if adapter := adapter_file(names):
        notes.append(f"{runs} without the adapter that lies beside ({adapter})")
    if gguf := next((name for name in names if name.endswith(".gguf")), None):
        notes.append(f"{runs}; to run {gguf}, which lies beside, give its path")
    return notes


def _time_of(path: Path) -> float:
    """When a file was written; 0 if there is none."""
    return path.stat().st_mtime if path.is_file() else 0.0


def _choice_of_weights(directory: Path, *, from_hub: bool) -> list[str]:
    """Notes about other weights than those that run.

    A repository's owner published it as it is, so `model.safetensors` runs, as in transformers.
    """
    used, shards = weight_files(directory), shards_of_index(directory)
    unused = unused_shards(directory)
    if used == shards or not shards:
        return []
    if not unused:
        return [f"{INDEX} names files that are not there, so {SINGLE_FILE} runs alone"]
    if same_weights(directory, used, unused):
        return []
    more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
    others = f"{unused[0]}{more}, which {INDEX} lists"
    if from_hub:
        return [f"{SINGLE_FILE} runs, as in transformers; the repository also holds {others}"]
    newest = max([SINGLE_FILE, *unused], key=lambda name: _time_of(directory / name))
    raise ModelError(
        f"{directory} holds two models: {SINGLE_FILE}, and {others}",
        f"delete the files of one of them; {newest} was written last",
    )
