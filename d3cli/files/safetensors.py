"""A checkpoint's weights as its files describe them: which files, which tensors, which shapes.

Reads headers, never weights. Knows nothing of the hub, devices or models.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from d3cli.base.errors import ModelError
from d3cli.base.json_rows import convert_json
from d3cli.files.json_files import (
    BAD_CONFIG,
    BAD_METADATA,
    DO_NOT_USE,
    LFS_HINT,
    no_name_twice,
    read_json,
    unreadable,
)

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

# Bytes of one file's header, and tensors in all. Several times what published models have.
LARGEST_HEADER, MOST_TENSORS = 8 << 20, 200_000

# safetensors' names of dtypes. All other dtypes take one byte.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4}
_ITEM_BYTES |= {"F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says about one tensor.

    Attributes:
        name: its name in the model.
        dtype: the format's name of its type: "BF16", or "Q4_K" in a GGUF file.
        shape: its shape in the model.
        copied: whether reading it always makes a copy, since a GGUF file holds it packed or in
            another order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    copied: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * _ITEM_BYTES.get(self.dtype, 1)

    @property
    def is_float(self) -> bool:
        return self.copied or self.dtype in FLOATS

    @property
    def layer(self) -> int | None:
        """The decoder layer that it belongs to: the first number in its name."""
        number = re.search(r"\.(\d+)\.", f".{self.name}")
        return int(number[1]) if number else None

    @property
    def is_expert(self) -> bool:
        """Whether it is one expert of a mixture. transformers joins these into one tensor."""
        return re.search(r"\.experts\.\d+\.", self.name) is not None


@dataclass(frozen=True, slots=True)
class Description:
    """What is known about a model before any weight is read.

    Attributes:
        name: what to call it in messages.
        config: the content of its config.json.
        tensors: its weights.
        is_gguf: whether its config is made from a GGUF file's metadata. Weights of such a file are
            unpacked in small parts, so that no weight is in memory twice.
    """

    name: str
    config: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    is_gguf: bool = False

    @property
    def stated_in(self) -> str:
        """What an error calls its config."""
        return f"the {'metadata' if self.is_gguf else 'config.json'} of {self.name}"

    @property
    def config_hint(self) -> str:
        """What to do about a config that makes no sense."""
        return BAD_METADATA if self.is_gguf else BAD_CONFIG


def describe_directory(name: str, directory: Path) -> Description:
    """The description of a model on disk.

    Raises:
        ModelError: a file is missing or damaged.
    """
    config = read_json(directory / "config.json")
    tensors = [
        tensor for file in weight_files(directory) for tensor in read_header(directory / file)
    ]
    if len(tensors) > MOST_TENSORS:
        raise ModelError(
            f"{name} has {len(tensors):,} tensors; the limit is {MOST_TENSORS:,}", DO_NOT_USE
        )
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ModelError(
                f"{name} holds the tensor {tensor.name!r} twice",
                "its shards come from different saves: save it again, or download it again",
            )
        seen.add(tensor.name)
    return Description(name, config, tuple(tensors))


def weight_files(directory: Path) -> list[str]:
    """The names of the safetensors files that hold a model's weights.

    As in transformers, `model.safetensors` comes before an index: a model that was saved in shards
    and then as one file leaves its index behind. An index that lists `model.safetensors` itself
    counts.

    Raises:
        ModelError: the index is damaged, or names a file outside the directory.
    """
    shards = shards_of_index(directory)
    if not shards or ((directory / SINGLE_FILE).is_file() and SINGLE_FILE not in shards):
        return [SINGLE_FILE]
    return shards


def shards_of_index(directory: Path) -> list[str]:
    """The names of the files that the index lists, whether they exist or not; empty without one.

    Raises:
        ModelError: the index is damaged, or names a file outside the directory.
    """
    path = directory / INDEX
    if not path.exists():
        return []
    index = read_json(path)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not isinstance(index.get("metadata"), dict):
        raise ModelError(
            f"{path} is damaged: it has no weight_map or no metadata",
            f"delete it if the weights are in {SINGLE_FILE}, else download it again",
        )
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or "\0" in name:
            raise ModelError(
                f"{path} names a file elsewhere, or of another kind: {name}",
                "weights must be safetensors beside config.json; do not use this model",
            )
    return names


def unused_shards(directory: Path) -> list[str]:
    """The shards of an index that is not used because `model.safetensors` comes before it.

    Empty if that cannot be mistaken: there is one set of weights, or the shards are gone.

    Raises:
        ModelError: as for `weight_files`.
    """
    shards = shards_of_index(directory)
    is_used = weight_files(directory) == shards
    there = all((directory / shard).is_file() for shard in shards)
    return shards if there and not is_used else []


def missing_weights(directory: Path) -> list[str]:
    """The weight files that are not in the directory; empty for a complete model."""
    return [shard for shard in weight_files(directory) if not (directory / shard).is_file()]


def read_header(path: Path) -> list[TensorInfo]:
    """The tensors that a safetensors file describes.

    Raises:
        ModelError: the file cannot be read or its header is damaged.
    """
    from safetensors import safe_open

    try:
        with path.open("rb", buffering=0) as raw:
            parse_header(raw, path.stat().st_size)  # refuses a name that stands there twice
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return [
                TensorInfo(name, part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            ]
    except (MemoryError, ModelError):
        raise
    except Exception as error:  # a damaged header raises several kinds
        raise unreadable(path, error) from error


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """A tensor in a safetensors header; its data begins and ends at `data_offsets`, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def parse_header(file: IO[bytes], size: int) -> tuple[int, dict[str, HeaderEntry]]:
    """The offset of a safetensors file's data, and the header's entry for each tensor.

    Raises:
        ValueError: the header is damaged or too large.
        ModelError: the file is not there, only a pointer to it.
    """
    length = file.read(8)
    if length == b"version ":
        raise ModelError(f"{file.name} is a Git LFS pointer, not the file itself", LFS_HINT)
    start = 8 + int.from_bytes(length, "little")
    if not 8 <= start <= min(size, 8 + LARGEST_HEADER):
        raise ValueError("its header is longer than the file, or than any header is")
    header = json.loads(file.read(start - 8), object_pairs_hook=no_name_twice)
    tensors = convert_json(header, dict[str, Any])
    tensors.pop("__metadata__", None)
    return start, convert_json(tensors, dict[str, HeaderEntry])
