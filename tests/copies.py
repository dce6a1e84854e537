"""Copies of the built-in model as if from a stranger, and the keys of models on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from d3cli.depth.calibration_record import ModelKey
from d3cli.files.names import find_on_disk
from tests.conftest import BUILTIN_PATH


def stranger(directory: Path) -> Path:
    """A new directory with a stranger's model, which brings no schedule."""
    directory.mkdir()
    for file in BUILTIN_PATH.iterdir():
        if file.is_file():
            (directory / file.name).write_bytes(file.read_bytes())
    return directory


def change_a_tensor(model: Path, change: Callable[[Any], Any]) -> None:
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def key_of(name: str | Path, dtype: str = "float32", quantization: str | None = None) -> ModelKey:
    """The key of a model on disk, as loading it makes one."""
    files = find_on_disk(str(name))
    assert files is not None
    return ModelKey(files.identity, files.fingerprint(), files.revision, dtype, quantization)
