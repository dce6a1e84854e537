"""A checkpoint's weights as its files describe them: which files, which tensors, of what shape.

Reads headers, not weights, until `lazy_state_dict`. Knows nothing of the hub, devices or models.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from d3cli.base.errors import ModelError, one_line
from d3cli.files.json_files import BROKEN_FILES, no_name_twice, read_json

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

# A mapped file's pages count as the process's memory until the mapping ends.
REOPEN_AFTER = 32 << 20

# Bytes of one file's header, and tensors in all: several times what published models have.
LARGEST_HEADER, MOST_TENSORS = 8 << 20, 200_000

# safetensors' names of dtypes; what is not here takes a byte.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4}
_ITEM_BYTES |= {"F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a safetensors header says of one tensor; `dtype` is the format's own name ("BF16")."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * _ITEM_BYTES.get(self.dtype, 1)

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def layer(self) -> int | None:
        """The decoder layer that it belongs to: the first number in its name."""
        number = re.search(r"\.(\d+)\.", f".{self.name}")
        return int(number[1]) if number else None

    @property
    def is_expert(self) -> bool:
        """Whether it is one expert of a mixture, which transformers joins with the others."""
        return re.search(r"\.experts\.\d+\.", self.name) is not None


@dataclass(frozen=True, slots=True)
class Description:
    """All that is known of a model before any weight is read: its config and its tensors."""

    name: str
    config: dict[str, Any]
    tensors: tuple[TensorInfo, ...]


def describe_directory(name: str, directory: Path) -> Description:
    """The description of a model on disk.

    Raises:
        ModelError: a file is missing or damaged.
    """
    config = read_json(directory / "config.json")
    tensors = [
        tensor for file in weight_files(directory) for tensor in _read_header(directory / file)
    ]
    if len(tensors) > MOST_TENSORS:
        raise ModelError(
            f"{name} has {len(tensors):,} tensors, and may have {MOST_TENSORS:,}", BROKEN_FILES
        )
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ModelError(f"{name} holds the tensor {tensor.name!r} twice", BROKEN_FILES)
        seen.add(tensor.name)
    return Description(name, config, tuple(tensors))


def weight_files(directory: Path) -> list[str]:
    """The names of the safetensors files that a model's weights are in.

    Raises:
        ModelError: the index is damaged, or names a file outside the directory.
    """
    if not (directory / INDEX).exists():
        return [SINGLE_FILE]
    index = read_json(directory / INDEX)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not isinstance(index.get("metadata"), dict):
        raise ModelError(
            f"{directory / INDEX} is damaged: it lacks weight_map or metadata", BROKEN_FILES
        )
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{directory / INDEX} names a file elsewhere, or of another kind: {name}",
                "weights must be safetensors beside config.json; do not use this model",
            )
    return names


def missing_weights(directory: Path) -> list[str]:
    """Weight files that the directory should have and has not; none for a complete model."""
    return [shard for shard in weight_files(directory) if not (directory / shard).is_file()]


def _read_header(path: Path) -> list[TensorInfo]:
    from safetensors import safe_open

    try:
        with path.open("rb", buffering=0) as raw:
            parse_header(raw, path.stat().st_size)  # safetensors takes the last of two of a name
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return [
                TensorInfo(name, part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            ]
    except MemoryError:
        raise
    except Exception as error:  # a damaged header raises several kinds
        raise ModelError(f"{path} cannot be read: {one_line(error)}", BROKEN_FILES) from error


def parse_header(file: IO[bytes], size: int) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file begins, and what it says of each tensor.

    Raises:
        ValueError: it is no header.
    """
    start = 8 + int.from_bytes(file.read(8), "little")
    if not 8 <= start <= min(size, 8 + LARGEST_HEADER):
        raise ValueError("its header is longer than the file, or than any header is")
    header: dict[str, Any] = json.loads(file.read(start - 8), object_pairs_hook=no_name_twice)
    header.pop("__metadata__", None)
    return start, header


def lazy_state_dict(
    directory: Path,
    is_converted: Callable[[TensorInfo], bool],
    on_read: Callable[[int], None],
) -> dict[str, "LazyTensor"]:
    """The weights by name, as transformers takes a state dict, each mapped when it is asked for.

    Args:
        is_converted: says of a tensor that it will be copied into another form. Such a tensor
            lives in a mapping of its own few neighbours, which ends soon after; all others share
            one, and stay mapped as long as the model uses them.
        on_read: is told the size of each tensor that is read to be converted.
    """
    state: dict[str, LazyTensor] = {}
    for file in weight_files(directory):
        path = directory / file
        lasting, passing = _Mapping(path, math.inf), _Mapping(path, REOPEN_AFTER)
        for tensor in _read_header(path):
            mapping = passing if is_converted(tensor) else lasting
            state[tensor.name] = LazyTensor(tensor, mapping, passing, on_read)
    return state


def read_again(state: dict[str, "LazyTensor"], tensor: Any) -> Any:
    """A tensor of the model, through a mapping that ends soon; itself where no file holds it so.

    The pages that reading it brings into memory are then gone with what is returned.
    """
    for lazy in state.values():
        # A part of a tensor, or a view of it, may begin at the same address.
        same = lazy.address == tensor.data_ptr() and tuple(lazy.get_shape()) == tuple(tensor.shape)
        if same and tensor.is_contiguous():
            return lazy.again()
    return tensor


class _Mapping:
    """A safetensors file that is mapped anew after every `budget` bytes read from it.

    The system keeps an old mapping until the last tensor read from it is gone. Reading from
    several threads at once reopens it now and then too early, which is harmless.
    """

    def __init__(self, path: Path, budget: float) -> None:
        self._path, self._budget = path, budget
        self._file: Any = None
        self._left = budget

    def read(self, name: str, nbytes: int) -> Any:
        from safetensors import safe_open

        file = self._file
        if file is None:
            file = self._file = safe_open(self._path, framework="pt")
            self._left = self._budget
        self._left -= nbytes
        if self._left <= 0:
            self._file = None
        return file.get_tensor(name)


class LazyTensor:
    """One tensor of a file, read by ``[...]``: what transformers asks of safetensors' slices.

    Attributes:
        address: where it is mapped for as long as the model lives; None where it is converted.
    """

    def __init__(
        self,
        info: TensorInfo,
        mapping: _Mapping,
        passing: _Mapping,
        on_read: Callable[[int], None],
    ) -> None:
        self._info, self._mapping, self._passing = info, mapping, passing
        self._on_read = on_read
        self.address: int | None = None

    def __getitem__(self, _: object) -> Any:
        tensor = self._mapping.read(self._info.name, self._info.nbytes)
        if self._mapping is self._passing:
            self._on_read(self._info.nbytes)
        else:
            self.address = tensor.data_ptr()
        return tensor

    def again(self) -> Any:
        """The same from the mapping of what is converted."""
        return self._passing.read(self._info.name, self._info.nbytes)

    def get_dtype(self) -> str:
        return self._info.dtype

    def get_shape(self) -> Sequence[int]:
        return self._info.shape
