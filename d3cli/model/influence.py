"""How much each unit changes the residual stream, measured while a pass at full depth runs.

A unit's *influence* at a position is one minus the cosine between the residual stream before and
after the unit (ShortGPT's Block Influence, Men et al., arXiv 2403.03853). It costs no extra pass,
only a look at what the pass computes. Knows nothing of schedules, tokens or what the influence is
for.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from d3cli.depth.units import UnitKind, unit_names
from d3cli.model.gate import LayerGate
from d3cli.model.watched import Watched

# One of so many positions is measured: 3, 7, 11, ... for layers. Sublayers get half as many, since
# a pass has twice as many sublayers. docs/algorithm.md compares this with measuring all positions.
STRIDE: Mapping[UnitKind, int] = {"layer": 4, "sublayer": 8, "plane": 8}

# How many bytes of rows are kept until they are compared, and how many bytes are compared at once,
# in float32. For a tensor of 1 MiB or more, the allocator maps new memory (`MMAP_THRESHOLD` in
# kernels/process.py), which takes longer than the comparison.
CHAIN_BYTES = PIECE_BYTES = 1_000_000


class InfluenceMeter:
    """Measures the influence of every unit of a kind in one pass at full depth.

    A sublayer's influence compares the stream before and after it is added: around the attention,
    then around the MLP. In a layer whose two sublayers read the same input, each is compared as if
    it were the only one.

    A prompt waits for this, so it must be fast. Between the products of a pass, each operation
    costs more than its arithmetic. So while layers run, the meter only copies the rows that it
    measures, and compares many states at once. It keeps no reference to whole states: their memory
    could not be used again while it is in the processor's caches.

    Args:
        gate: the gate of the model that will run.
        kind: which units to measure.
        position: the position of the pass's first token, which decides where it is measured.
    """

    def __init__(self, gate: LayerGate, kind: UnitKind, position: int = 0) -> None:
        self._gate, self._kind = gate, kind
        self._stride = STRIDE[kind]
        self._first = (-1 - position) % self._stride
        self._watched = Watched()
        self._measured: Tensor  # the positions measured, [M]
        # Rows of states to compare, each with those before them: [C, B, M, H], its C parts, and how
        # many of them are written.
        self._chain: Tensor
        self._parts: tuple[Tensor, ...] = ()
        self._written = 0
        # Of each piece of a chain: the distances of neighbours, scaled to norms of 1, and the norms
        # of the ones before and of the ones after, each [C - 1, B, M].
        self._compared: list[tuple[Tensor, Tensor, Tensor]] = []
        # In sublayers only: what children of the layer that is running read and returned, what
        # that layer read, and whether both sublayers read the same input.
        self._read: dict[str, Tensor] = {}
        self._returned: dict[str, Tensor] = {}
        self._before: Tensor
        self._parallel = False

    @property
    def units(self) -> tuple[str, ...]:
        """The units' names, in the order of the columns of `rows`."""
        return unit_names(len(self._gate.layers), self._kind)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measures the pass that runs inside this context."""
        first, *others = self._gate.layers
        try:
            self._watched.reading(first, self._begin)
            if self._kind == "layer":
                for layer in (first, *others):
                    self._watched.returning(layer, self._note)
            else:
                for name, child in first.named_children():
                    self._watched.reading(child, partial(self._read.__setitem__, name))
                    self._watched.returning(child, partial(self._returned.__setitem__, name))
                self._watched.returning(first, self._learn)
            yield
        finally:
            self._watched.end()
        self._compare_chain()

    def rows(self) -> Tensor:
        """The units' influence, ``[B, M, units]`` float32 on the CPU, at the positions measured.

        ``1 - cos(a, b) = |a / |a| - b / |b||² / 2``. From a product of nearly parallel states, a
        cosine would be inexact.
        """
        distance, before, after = (
            torch.cat(each).cpu() for each in zip(*self._compared, strict=True)
        )
        change = distance.square_().mul_(0.5)
        change.masked_fill_(before * after == 0, 1.0)  # a state of zeros has no direction
        if self._parallel:  # of three steps in the chain, the third is no unit
            change = change[[step for step in range(len(change)) if step % 3 != 2]]
        return change.permute(1, 2, 0)

    def _begin(self, states: Tensor) -> None:
        """Begins the chain with what the first layer reads."""
        self._before = states
        places = range(self._first, states.shape[1], self._stride)
        self._measured = torch.tensor(places, dtype=torch.long, device=states.device)
        rows = self._rows(states)
        length = max(2, CHAIN_BYTES // max(1, rows.nbytes))
        self._chain = rows.new_empty(length, *rows.shape)
        self._parts = self._chain.unbind()
        self._parts[0].copy_(rows)
        self._written = 1

    def _rows(self, states: Tensor) -> Tensor:
        """The rows ``[B, M, H]`` that are measured, on the device of the chain."""
        device = self._measured.device
        if states.device == device:
            return states.index_select(1, self._measured)
        return states[:, self._first :: self._stride].to(device)  # layers may run on several

    def _note(self, states: Tensor) -> None:
        """Notes the states after the next unit; those before it were noted last."""
        if states.device == self._measured.device:
            torch.index_select(states, 1, self._measured, out=self._next())
        else:
            self._next().copy_(self._rows(states))

    def _next(self) -> Tensor:
        """Where the next rows of the chain belong."""
        if self._written == len(self._parts):
            self._compare_chain()
        self._written += 1
        return self._parts[self._written - 1]

    def _learn(self, after: Tensor) -> None:
        """Notes the states around the first layer's sublayers, and watches the other layers.

        Families differ in their norms: before a sublayer, after it, or both. In all of them the MLP
        reads the residual stream, directly or through a child of the layer, its norm.
        """
        attn, mlp = self._gate.family.attn, self._gate.family.mlp or ""
        made = (name for name, made in self._returned.items() if made is self._read[mlp])
        reader = next(made, mlp)
        others = self._gate.layers[1:]
        # What the layer read, on its own device: `_before` may lie on another one.
        first_read = next(iter(self._read.values()))
        self._parallel = self._read[reader] is first_read
        if self._parallel:
            self._written = 0
            self._note_parallel(after)
            for layer in others:
                for name in (attn, mlp):
                    child = layer.get_submodule(name)
                    self._watched.returning(child, partial(self._returned.__setitem__, name))
                self._watched.returning(layer, self._note_parallel)
        else:
            self._note(self._read[reader])
            self._note(after)
            for layer in others:
                self._watched.reading(layer.get_submodule(reader), self._note)
                self._watched.returning(layer, self._note)

    def _note_parallel(self, after: Tensor) -> None:
        """Notes the states around two sublayers that read the same input.

        They are compared on both sides of it: a cosine is the same in both directions.
        """
        family, before = self._gate.family, self._rows(self._before)
        torch.add(before, self._rows(self._returned[family.attn]), out=self._next())
        self._next().copy_(before)
        torch.add(before, self._rows(self._returned[family.mlp or ""]), out=self._next())
        self._before = after

    def _compare_chain(self) -> None:
        """Compares the states in the chain, in pieces. Its last one begins the next chain."""
        if self._written < 2:
            return
        most = max(2, PIECE_BYTES // max(1, 4 * self._parts[0].numel()))  # states in a piece
        for start in range(0, self._written - 1, most - 1):
            states = self._chain[start : min(start + most, self._written)].float()
            norms = torch.linalg.vector_norm(states, dim=-1)  # [C, B, M]
            states = states / norms[..., None]  # not in place: it may be the chain
            distance = torch.linalg.vector_norm(states[1:] - states[:-1], dim=-1)
            self._compared.append((distance, norms[:-1], norms[1:]))
        self._parts[0].copy_(self._parts[self._written - 1])
        self._written = 1
