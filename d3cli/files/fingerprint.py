"""A model's fingerprint, which tells whether a stored calibration still fits the model."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO

from d3cli.base.errors import ModelError
from d3cli.files.gguf import GgufModel
from d3cli.files.json_files import BOUNDS, model_file, unreadable
from d3cli.files.safetensors import parse_header, weight_files

SAMPLE_BYTES = 4096  # of each tensor: one page


def fingerprint(directory: Path) -> str:
    """A SHA-256 over a model's config and a sample of its weights.

    The sample holds each tensor's name, dtype, shape and up to 4 KB from the middle of its data.
    How tensors are spread over files does not matter, nor do the tokenizer and the generation
    settings. It differs for another model, a fine-tune or a new conversion. It is not a checksum:
    hashing all of 16 GB would take many seconds at every start.

    Raises:
        ModelError: a file is missing or damaged.
    """
    config = model_file(BOUNDS["config.json"][0]).read(directory / "config.json")
    digest = sha256(sha256(config).digest())
    for tensor, data in _samples_of(directory, weight_files(directory)):
        digest.update(sha256(tensor.encode()).digest() + data)
    return digest.hexdigest()


def gguf_fingerprint(model: GgufModel) -> str:
    """The fingerprint of a model in GGUF: its metadata and a sample of its weights, as above.

    Neither the tokenizer nor the model's name counts, nor how a split model is split.

    Raises:
        ModelError: a file cannot be read.
    """
    counted = [key for key in sorted(model.metadata) if key.startswith(f"{model.architecture}.")]
    config = json.dumps([model.architecture, *((key, model.metadata[key]) for key in counted)])
    digest = sha256(sha256(config.encode()).digest())
    for name, tensor in sorted(model.tensors.items()):
        description = json.dumps([name, tensor.type.name, tensor.shape])
        try:
            with tensor.path.open("rb", buffering=0) as file:
                sample = _middle(file, tensor.offset, tensor.nbytes)
        except OSError as error:
            raise unreadable(tensor.path, error) from error
        digest.update(sha256(description.encode()).digest() + sample)
    return digest.hexdigest()


def same_weights(directory: Path, files: list[str], others: list[str]) -> bool:
    """Whether two sets of weight files hold the same tensors, by the samples of `fingerprint`.

    Files that cannot be read hold other tensors.
    """
    try:
        return _samples_of(directory, files) == _samples_of(directory, others)
    except ModelError:
        return False


def _samples_of(directory: Path, files: list[str]) -> list[tuple[str, bytes]]:
    """The samples of several files, sorted.

    Raises:
        ModelError: a file is missing or damaged.
    """
    samples: list[tuple[str, bytes]] = []
    for file in files:
        try:
            samples += _samples(directory / file)
        except (OSError, ValueError, RecursionError) as error:
            raise unreadable(directory / file, error) from error
    return sorted(samples)


def _samples(path: Path) -> Iterator[tuple[str, bytes]]:
    """For each tensor of a safetensors file: its description, and a hash of its middle bytes."""
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        start, header = parse_header(file, size)
        for name, entry in header.items():
            begin, end = entry.data_offsets
            if not 0 <= begin <= end <= size - start:
                raise ValueError(f"the data of {name!r} lies outside the file")
            description = json.dumps([name, entry.dtype, entry.shape])
            yield description, _middle(file, start + begin, end - begin)


def _middle(file: IO[bytes], begin: int, nbytes: int) -> bytes:
    """A hash of up to `SAMPLE_BYTES` from the middle of a tensor's data."""
    length = min(SAMPLE_BYTES, nbytes)
    file.seek(begin + (nbytes - length) // 2)
    return sha256(file.read(length)).digest()
