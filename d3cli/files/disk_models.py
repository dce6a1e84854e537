"""What models on disk are, in a few facts for lists: format, size, layers. Reads headers alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from d3cli.base.errors import D3Error, ModelError
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


def models_at(name: str) -> list[DiskModel]:
    """The models that a name stands for: one, or all that a directory or its subdirectories hold.

    Raises:
        D3Error: there is no such name, or nothing on disk has it.
    """
    try:
        paths = _models_in(Path(name).expanduser())
    except (OSError, RuntimeError, ValueError):  # no path
        paths = []
    if paths:
        return [_described(str(path)) for path in paths]
    files = find_on_disk(name)
    if files is None:
        raise ModelError(f"{name} is not on disk", "d3 generate fetches it")
    return [_facts(files)]


def _models_in(directory: Path) -> list[Path]:
    """The models in a directory, else those in its subdirectories."""
    if not directory.is_dir():
        return []
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    return list(_own_models(directory)) or [
        path for folder in folders for path in _own_models(folder)
    ]


def _own_models(directory: Path) -> Iterator[Path]:
    if (directory / "config.json").is_file() and any(directory.glob("*.safetensors")):
        yield directory
    yield from gguf_models(directory)


def _described(name: str) -> DiskModel:
    """The facts about a model that is there, or its problem."""
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
