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

# How many bytes of states, in float32, are compared at once. For a tensor of 1 MiB or more, the
# allocator maps new memory (`MMAP_THRESHOLD` in kernels/process.py), which takes longer than the
# comparison.
CHAIN_BYTES = 1_000_000


class InfluenceMeter:
    """Measures the influence of every unit of a kind in one pass at full depth.

    A sublayer's influence compares the stream before and after it is added: around the attention,
    then around the MLP. In a layer whose two sublayers read the same input, each is compared as if
    it were the only one.

    A prompt waits for this, so it must be fast. Between the products of a pass, each operation
    costs more than its arithmetic. So the meter only keeps references to the states while layers
    run, and compares many states at once.

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
        # States [B, S, H] to compare, each with the one before it.
        self._chain: list[Tensor] = []
        self._chain_length = 2
        # For each chain compared: the norms, at the positions measured, of the differences, of the
        # states before and of the states after, each [C - 1, B, M].
        self._norms: list[tuple[Tensor, Tensor, Tensor]] = []
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

        It is computed from norms, since a cosine of nearly parallel states would be inexact:
        ``1 - cos = (|after - before|² - (|after| - |before|)²) / (2 |before| |after|)``.
        """
        distance, before, after = (
            torch.cat(norms).cpu() for norms in zip(*self._norms, strict=True)
        )
        longer = after - before
        product = before * after
        change = ((distance - longer) * (distance + longer)).clamp_(min=0).div_(2 * product)
        change.masked_fill_(product == 0, 1.0)  # a state of zeros has no direction
        if self._parallel:  # of three steps in the chain, the third is no unit
            change = change[[step for step in range(len(change)) if step % 3 != 2]]
        return change.permute(1, 2, 0)

    def _begin(self, states: Tensor) -> None:
        """Begins the chain with what the first layer reads."""
        bytes_compared = 4 * states.numel() // self._stride
        self._chain_length = max(2, CHAIN_BYTES // max(1, bytes_compared))
        self._before = states
        self._chain.append(states)

    def _note(self, states: Tensor) -> None:
        """Notes the states after the next unit; those before it were noted last."""
        self._chain.append(states)
        if len(self._chain) >= self._chain_length:
            self._compare_chain()

    def _learn(self, after: Tensor) -> None:
        """Notes the states around the first layer's sublayers, and watches the other layers.

        Families differ in their norms: before a sublayer, after it, or both. In all of them the MLP
        reads the residual stream, directly or through a child of the layer, its norm.
        """
        attn, mlp = self._gate.family.attn, self._gate.family.mlp or ""
        made = (name for name, made in self._returned.items() if made is self._read[mlp])
        reader = next(made, mlp)
        others = self._gate.layers[1:]
        self._parallel = self._read[reader] is self._before
        if self._parallel:
            self._chain.clear()
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
        family, before = self._gate.family, self._before
        self._note(before + self._returned[family.attn])
        self._note(before)
        self._note(before + self._returned[family.mlp or ""])
        self._before = after

    def _compare_chain(self) -> None:
        """Computes the norms of the states in the chain. Its last one begins the next chain."""
        if len(self._chain) < 2:
            return
        measured = [states[:, self._first :: self._stride] for states in self._chain]
        states = torch.stack(measured).float()  # [C, B, M, H]
        norms = torch.linalg.vector_norm(states, dim=-1)  # [C, B, M]
        distance = torch.linalg.vector_norm(states[1:] - states[:-1], dim=-1)
        self._norms.append((distance, norms[:-1], norms[1:]))
        del self._chain[:-1]
