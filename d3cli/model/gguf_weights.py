"""The weights of a GGUF file, each unpacked when it is needed.

transformers asks for one weight after another. A weight that will be copied once more, into
oneDNN's order or into 8 bits, is not unpacked for transformers: it gets a placeholder of the same
shape that takes no memory, and the values are read when the copy is made. So loading takes the
memory of the weights and of one weight more.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d3cli.files.gguf import GgufTensor
from d3cli.files.safetensors import TensorInfo
from d3cli.kernels.ggml_blocks import (
    PLAIN,
    read_packed,
    rows_of,
    unpack,
    unpack_into,
    values_of,
)
from d3cli.kernels.ggml_groups import KINDS, groups_of
from d3cli.kernels.int4_rounding import Groups
from d3cli.kernels.plan import KernelPlan
from d3cli.kernels.process import return_freed_memory
from d3cli.model.gguf_tensors import HEAD, Change, Recipe

OnRead = Callable[[int], None]


class GgufWeights:
    """The weights of a model; see `StoredWeights`."""

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        plan: KernelPlan,
        on_read: OnRead,
        is_deferred: Callable[[TensorInfo], bool],
    ) -> None:
        return_freed_memory()
        self.state = {
            name: GgufWeight(
                recipe,
                plan.form.dtype,
                is_placed_later=_is_placed_later(recipe, plan) or is_deferred(recipe.info),
                on_read=on_read,
            )
            for name, recipe in recipes.items()
        }
        if plan.form.device.type == "cpu":
            _map_files(list(self.state.values()), plan)

    def read(self, tensor: Tensor) -> Tensor:
        """The values of a tensor of the model."""
        weight = self._weight_of(tensor)
        return tensor if weight is None else weight.read()

    def rows(self, tensor: Tensor) -> Any:
        """The same, by rows."""
        weight = self._weight_of(tensor)
        return tensor if weight is None else weight

    def groups(self, tensor: Tensor) -> Callable[[slice], Groups] | None:
        """Rows in the 4 bits of the file; None if it holds other bits."""
        weight = self._weight_of(tensor)
        return None if weight is None else weight.groups()

    def reader(self, tensor: Tensor) -> Callable[[], Tensor]:
        weight = self._weight_of(tensor)
        return (lambda: tensor) if weight is None else weight.values

    @torch.inference_mode()
    def fill(self, model: Any) -> None:
        """Reads the weights whose placeholders are still in the model."""
        for parameter in model.parameters():
            weight = self._weight_of(parameter)
            if weight is not None:
                parameter.data = weight.read()

    def _weight_of(self, tensor: Tensor) -> "GgufWeight | None":
        """The weight for which a tensor is a placeholder; None if it holds the values."""
        if not tensor.is_cpu or tensor.is_mkldnn:
            return None
        return self._placed_later.get(tensor.data_ptr())

    @cached_property
    def _placed_later(self) -> dict[int, "GgufWeight"]:
        """The weights with a placeholder, by its address; once transformers has asked for all."""
        placeholders = [(weight.placeholder, weight) for weight in self.state.values()]
        return {
            placeholder.data_ptr(): weight
            for placeholder, weight in placeholders
            if placeholder is not None
        }


class GgufWeight:
    """One weight, read by ``[...]``, as transformers reads safetensors' slices.

    Args:
        dtype: the dtype of the values.
        is_placed_later: whether ``[...]`` returns a placeholder.
        on_read: is called with the weight's size in `dtype` when it is unpacked.

    Attributes:
        recipe: how it is made.
        mapped: the values as a part of the file; None if they must be copied.
        placeholder: what ``[...]`` returned instead of the values.
    """

    def __init__(
        self, recipe: Recipe, dtype: torch.dtype, *, is_placed_later: bool, on_read: OnRead
    ) -> None:
        self.recipe = recipe
        self.mapped: Tensor | None = None
        self.placeholder: Tensor | None = None
        self._dtype, self._is_placed_later, self._on_read = dtype, is_placed_later, on_read

    def __getitem__(self, part: Any) -> Tensor:
        if isinstance(part, slice):
            return self._rows(*part.indices(self.get_shape()[0])[:2])
        if isinstance(part, tuple):  # of a weight that is split over ranks
            if self.mapped is not None:
                return self.mapped[part].contiguous()
            # A copy, since a view would keep the rest in memory.
            return self.read()[part].clone(memory_format=torch.contiguous_format)
        if not self._is_placed_later:
            return self.read() if self.mapped is None else self.mapped
        # NaN, so that a placeholder that stays by mistake cannot go unnoticed.
        one = torch.full((1,), torch.nan, dtype=self._dtype)
        self.placeholder = one.expand(self.get_shape())
        return self.placeholder

    def get_shape(self) -> tuple[int, ...]:
        return self.recipe.info.shape

    def read(self) -> Tensor:
        """The values, unpacked. Counts as progress."""
        found = self.values()
        self._on_read(found.nbytes)
        return found

    def values(self) -> Tensor:
        """The values, unpacked."""
        shape, sources = self.get_shape(), self.recipe.sources
        found = torch.empty(shape, dtype=self._dtype)
        if self.recipe.change is Change.TRANSPOSED or len(shape) == 1:
            values = self.recipe.processed(sources[0], values_of(sources[0]))
            found.copy_(torch.from_numpy(values))
        elif self.recipe.change is Change.ROWS:
            packed = self.recipe.processed(sources[0], read_packed(sources[0]))
            unpack_into(found, sources[0], packed=packed)
        elif len(shape) == 2:
            unpack_into(found, sources[0])
        else:
            self._read_experts(found)
        return found

    def groups(self) -> Callable[[slice], Groups] | None:
        """As `GgufWeights.groups`. The weight counts as read from now on."""
        (source, *others), change = self.recipe.sources, self.recipe.change
        if others or source.type.name not in KINDS:
            return None
        # A transposed weight has the rows that the kernel wants in the file.
        whole = read_packed(source) if change is Change.ROWS else None
        if whole is not None:
            whole = self.recipe.processed(source, whole)

        def encode(part: slice) -> Groups:
            rows = (
                read_packed(source, part.start, part.stop - part.start)
                if whole is None
                else np.ascontiguousarray(whole[part])
            )
            return groups_of(torch.from_numpy(rows), source.type.name, self._dtype)

        self._on_read(prod(self.get_shape()) * self._dtype.itemsize)
        return encode

    def _rows(self, first: int, end: int) -> Tensor:
        """Some rows of a matrix that has the order of the file."""
        assert self.recipe.change is Change.NONE
        source = self.recipe.sources[0]
        rows = unpack(read_packed(source, first, end - first), source.type).to(self._dtype)
        self._on_read(rows.nbytes)
        return rows

    def _read_experts(self, found: Tensor) -> None:
        """Fills ``[experts, rows, inputs]``: for each expert, the rows of all sources."""
        for number, source in enumerate(self.recipe.sources):
            rows = rows_of(source) // len(found)
            at = number * rows
            for expert, matrix in enumerate(found):
                unpack_into(matrix[at : at + rows], source, first=expert * rows)


def _is_placed_later(recipe: Recipe, plan: KernelPlan) -> bool:
    """Whether the model's own copy of a weight is made after transformers has loaded it."""
    if plan.quantizes(recipe.info):
        is_multiplied = recipe.linear or recipe.change is Change.TRANSPOSED
        return is_multiplied and plan.quantizes_itself(recipe.info)
    if not recipe.linear:
        return False
    is_changed_head = recipe.info.name == HEAD and (plan.head_in_8_bits or plan.packs_head)
    return is_changed_head or plan.copies(recipe.info)


def _map_files(weights: list[GgufWeight], plan: KernelPlan) -> None:
    """Maps the weights that the model can use as they lie in the files."""
    storages: dict[Path, Any] = {}
    for weight in weights:
        source = weight.recipe.sources[0]
        if not plan.converts(weight.recipe.info) and len(source.shape) > 1:
            dtype = PLAIN[source.type.name]
            if source.offset % dtype.itemsize == 0:
                weight.mapped = _mapped(source, dtype, storages)


def _mapped(source: GgufTensor, dtype: torch.dtype, storages: dict[Path, Any]) -> Tensor:
    """A tensor as a part of its file, which the system reads when it is used."""
    if source.path not in storages:
        size = source.path.stat().st_size
        storages[source.path] = torch.UntypedStorage.from_file(str(source.path), False, size)
    whole = torch.empty(0, dtype=dtype).set_(storages[source.path])
    first = source.offset // dtype.itemsize
    return whole[first : first + prod(source.shape)].view(source.shape)
