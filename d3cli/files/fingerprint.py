"""A model's fingerprint, which tells whether a stored calibration still fits the model."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from d3cli.base.errors import ModelError
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
            length = min(SAMPLE_BYTES, end - begin)
            file.seek(start + begin + (end - begin - length) // 2)
            description = json.dumps([name, entry.dtype, entry.shape])
            yield description, sha256(file.read(length)).digest()
