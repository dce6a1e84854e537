"""What models on disk are, in a few facts for lists: format, size, layers. Reads headers alone."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from d3cli.base.errors import D3Error, ModelError
from d3cli.files.gguf import is_gguf
from d3cli.files.gguf_directory import gguf_models
from d3cli.files.names import ModelFiles, find_on_disk
from d3cli.files.safetensors import describe_directory, weight_files

LEAST_SHARE = 0.01  # of a model's bytes, for a type of weights to be named


@dataclass(frozen=True, slots=True)
class DiskModel:
    """A model on disk.

    Attributes:
        name: by which d3 finds it.
        identity: under which its calibrations are stored; empty if it cannot be read.
        format: "GGUF" or "safetensors"; empty if it cannot be read, and so are those below.
        model_type: transformers' name of its architecture.
        weights: the types of its weights, the most bytes first: ("Q4_K", "Q6_K").
        layers: the number of its layers, if it says so.
        size_bytes: the size of its weights on disk.
        problem: why d3 cannot run it.
    """

    name: str
    identity: str = ""
    format: str = ""
    model_type: str = ""
    weights: tuple[str, ...] = ()
    layers: int | None = None
    size_bytes: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FoundModels:
    """What a name stands for.

    Attributes:
        models: one, or all that a directory and its subdirectories hold, with those that cannot
            run. Hidden files and directories are left out.
        without: the subdirectories that hold no model.
    """

    models: list[DiskModel]
    without: list[Path] = field(default_factory=list)


def models_at(name: str) -> FoundModels:
    """The models that a name stands for.

    Raises:
        D3Error: there is no such name, or nothing on disk has it.
    """
    try:
        found = _models_in(Path(name).expanduser())
    except (OSError, RuntimeError, ValueError):  # no path
        found = FoundModels([])
    if found.models:
        return found
    files = find_on_disk(name)
    if files is None:
        raise ModelError(f"{name} is not on disk", "d3 generate fetches it")
    return FoundModels([_facts(files)])


def _models_in(directory: Path) -> FoundModels:
    """The models in a directory and in its subdirectories."""
    found = FoundModels([])
    if not directory.is_dir():
        return found
    has_config, has_weights = _parts_of_safetensors(directory)
    if has_config and has_weights:
        found.models.append(_described(directory))
    found.models.extend(_gguf_in(directory))
    for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
        if folder.name.startswith("."):
            continue
        try:
            models = [_described(folder)] if any(_parts_of_safetensors(folder)) else []
            models += _gguf_in(folder)
        except OSError as error:
            models = [DiskModel(str(folder), problem=f"it cannot be read: {error.strerror}")]
        found.models.extend(models)
        if not models:
            found.without.append(folder)
    return found


def _parts_of_safetensors(directory: Path) -> tuple[bool, bool]:
    """Whether a directory has a config that is not that of a GGUF file; and weights."""
    has_weights = any(directory.glob("*.safetensors"))
    has_config = (directory / "config.json").is_file()
    return has_config and (has_weights or not gguf_models(directory)), has_weights


def _gguf_in(directory: Path) -> list[DiskModel]:
    """The GGUF models in a directory, and the files that only claim to be one."""
    others = [path for path in directory.glob("[!.]*.gguf") if not is_gguf(path)]
    return [_described(path) for path in (*gguf_models(directory), *sorted(others))]


def _described(path: Path) -> DiskModel:
    """The facts about a model that is there, or its problem."""
    name = str(path)
    try:
        files = find_on_disk(name)
        assert files is not None  # the name is a path
        return _facts(files)
    except D3Error as error:
        return DiskModel(name, problem=error.message)


def _facts(files: ModelFiles) -> DiskModel:
    if (gguf := files.gguf) is not None:
        layers = gguf.metadata.get(f"{gguf.architecture}.block_count")
        form, model_type, nbytes = "GGUF", gguf.model_type, gguf.types
        size = gguf.nbytes
    else:
        description = describe_directory(files.name, files.path)
        layers = description.config.get("num_hidden_layers", description.config.get("n_layer"))
        form, model_type = "safetensors", str(description.config.get("model_type", ""))
        nbytes = Counter()
        for tensor in description.tensors:
            nbytes[tensor.dtype] += tensor.nbytes
        size = sum((files.path / file).stat().st_size for file in weight_files(files.path))
    total = sum(nbytes.values())
    return DiskModel(
        name=files.name,
        identity=files.identity,
        format=form,
        model_type=model_type,
        weights=tuple(kind for kind, most in nbytes.items() if most >= LEAST_SHARE * total),
        layers=layers if isinstance(layers, int) else None,
        size_bytes=size,
    )
