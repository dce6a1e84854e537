"""Rows of a GGUF tensor as torch tensors: read from the file and unpacked a few at a time.

GGUF stores most weights in blocks of 32 or 256 small integers with scales. The package `gguf`
unpacks them to float32, bit for bit as transformers does. Knows nothing of models or of tensors'
meanings.
"""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d3cli.base.errors import ModelError
from d3cli.files.gguf import GgufTensor
from d3cli.files.gguf_types import GgufType
from d3cli.files.json_files import BROKEN_FILES

# Weights that are unpacked at once: their float32 copies are the memory that unpacking takes.
CHUNK = 1 << 19

# GGUF's types that are not blocks.
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def rows_of(tensor: GgufTensor) -> int:
    """How many rows a tensor has, of all its matrices; a vector is one row."""
    return prod(tensor.shape[:-1])


def read_packed(tensor: GgufTensor, first: int = 0, count: int | None = None) -> Any:
    """Rows as they are stored: an array of bytes ``[rows, bytes of a row]``.

    Raises:
        ModelError: the file has become shorter.
    """
    rows = rows_of(tensor)
    count = rows - first if count is None else count
    row_bytes = tensor.nbytes // rows
    packed = np.empty((count, row_bytes), dtype=np.uint8)
    rest: memoryview = packed.reshape(-1).data
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.offset + first * row_bytes)
        while rest:
            found = file.readinto(rest)
            if not found:
                raise ModelError(f"{tensor.path} ends inside {tensor.name}", BROKEN_FILES)
            rest = rest[found:]
    return packed


def unpack(packed: Any, kind: GgufType) -> Tensor:
    """Packed rows as values: float32, or the type of the file if it is not blocks."""
    if kind.is_plain:
        return torch.from_numpy(packed).view(PLAIN[kind.name])
    from gguf import GGMLQuantizationType, dequantize

    with np.errstate(all="ignore"):  # damaged scales become NaN, which generation reports
        return torch.from_numpy(dequantize(packed, GGMLQuantizationType(kind.number)))


def unpack_into(out: Tensor, tensor: GgufTensor, first: int = 0, packed: Any = None) -> None:
    """Fills ``out`` ``[rows, row]`` with the rows of a tensor from `first` on, in chunks.

    Args:
        packed: the tensor's packed rows, if they have been read.
    """
    step = max(1, CHUNK // out.shape[1])
    for start in range(0, len(out), step):
        part = out[start : start + step]
        if packed is None:
            rows = read_packed(tensor, first + start, len(part))
        else:
            rows = packed[first + start : first + start + len(part)]
        part.copy_(unpack(rows, tensor.type))


def values_of(tensor: GgufTensor) -> Any:
    """All values of a tensor as a float32 array of its shape."""
    return unpack(read_packed(tensor), tensor.type).float().numpy().reshape(tensor.shape)
