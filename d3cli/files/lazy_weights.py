"""A checkpoint's weights, each mapped from its file when transformers asks for it.

A mapped file's pages count as this process's memory until the mapping ends. So tensors that are
copied into another form come from mappings that end soon. Knows nothing of models.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d3cli.files.safetensors import TensorInfo, read_header, weight_files

REOPEN_AFTER = 32 << 20  # bytes read from one short mapping


def lazy_state_dict(
    directory: Path,
    is_converted: Callable[[TensorInfo], bool],
    on_read: Callable[[int], None],
    placeholder: Callable[[TensorInfo], Any] = lambda _: None,
) -> dict[str, "LazyTensor"]:
    """The weights by name, in the form of a state dict that transformers accepts.

    Args:
        is_converted: whether a tensor will be copied into another form. Such tensors share
            mappings that end after `REOPEN_AFTER` bytes. All others share one mapping per file,
            which lasts as long as the model uses it.
        on_read: is called with the size of each converted tensor as it is read.
        placeholder: what transformers gets instead of a tensor, of the same shape; None for the
            tensor itself. `read_again` returns the tensor for its placeholder.
    """
    state: dict[str, LazyTensor] = {}
    for file in weight_files(directory):
        path = directory / file
        lasting, passing = MappedFile(path, math.inf), MappedFile(path, REOPEN_AFTER)
        for tensor in read_header(path):
            mapping = passing if is_converted(tensor) else lasting
            lazy = LazyTensor(tensor, mapping, passing, on_read)
            lazy.placeholder = placeholder(tensor)
            state[tensor.name] = lazy
    return state


def read_again(state: dict[str, "LazyTensor"], tensor: Any) -> Any:
    """The same tensor from a mapping that ends soon, or `tensor` if no file holds it as it is.

    The pages read into memory are freed together with the returned tensor.
    """
    for lazy in state.values():
        if lazy.placeholder is not None and lazy.placeholder.data_ptr() == tensor.data_ptr():
            return lazy.again()
        # A part or a view of another tensor may begin at the same address.
        same = lazy.address == tensor.data_ptr() and tuple(lazy.get_shape()) == tuple(tensor.shape)
        if same and tensor.is_contiguous():
            return lazy.again()
    return tensor


class MappedFile:
    """A safetensors file that is mapped again after every `budget` bytes read from it.

    The system keeps an old mapping until the last tensor read from it is freed. Several threads
    that read at once may reopen it too early, which is harmless.
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
    """One tensor of a file, read by ``[...]``, as transformers reads safetensors' slices.

    A tuple of slices reads a part of it.

    Attributes:
        address: where it is mapped for as long as the model lives; None if it is converted.
        placeholder: what ``[...]`` returns instead of the tensor, if anything.
    """

    def __init__(
        self,
        info: TensorInfo,
        mapping: MappedFile,
        passing: MappedFile,
        on_read: Callable[[int], None],
    ) -> None:
        self._info, self._mapping, self._passing = info, mapping, passing
        self._on_read = on_read
        self.address: int | None = None
        self.placeholder: Any = None

    def __getitem__(self, part: object) -> Any:
        if self.placeholder is not None:
            return self.placeholder
        tensor = self._mapping.read(self._info.name, self._info.nbytes)
        if self._mapping is self._passing:
            self._on_read(self._info.nbytes)
        else:
            self.address = tensor.data_ptr()
        # A weight that is split over ranks is read by a tuple of slices.
        return tensor[part].contiguous() if isinstance(part, tuple) else tensor

    def again(self) -> Any:
        """As `read`, which counts as progress if a placeholder did not."""
        if self.placeholder is not None:
            self._on_read(self._info.nbytes)
        return self.read()

    def read(self) -> Any:
        """The tensor from the mapping that ends soon."""
        return self._passing.read(self._info.name, self._info.nbytes)

    def get_dtype(self) -> str:
        return self._info.dtype

    def get_shape(self) -> Sequence[int]:
        return self._info.shape
