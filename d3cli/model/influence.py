"""How much each unit changes the residual stream, measured while a pass at full depth runs.

A unit's *influence* at a position is one minus the cosine between the residual stream before and
after the unit (ShortGPT's Block Influence, Men et al., arXiv 2403.03853). It costs no extra pass:
hooks look at what the pass computes. Knows nothing of schedules, tokens or what the influence is
for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from d3cli.base.errors import GenerationError, Setting
from d3cli.depth.prompt_order import MIN_POSITIONS
from d3cli.depth.units import UnitKind, unit_names
from d3cli.model.gate import LayerGate

# Short prompts whose influence is remembered.
SHORT_PROMPTS = 64


class InfluenceMeter:
    """Measures the influence of every unit of a kind in one pass at full depth.

    A sublayer's influence compares the stream before and after it is added: around the attention,
    then around the MLP. In a layer whose two sublayers read the same input, each is compared as if
    it were the only one.

    Args:
        gate: the gate of the model that will run.
        kind: which units to measure.

    Attributes:
        units: their names, in the order of the columns of `rows`.
    """

    def __init__(self, gate: LayerGate, kind: UnitKind) -> None:
        self._gate, self._kind = gate, kind
        self.units = unit_names(len(gate.layers), kind)
        # For each unit in order: the norms [B, S] of what it adds, and of the states around it.
        self._sides: list[tuple[Tensor, Tensor, Tensor]] = []
        self._norms: list[tuple[Tensor, Tensor]] = []  # states and their norms, the last ones
        self._branch = _Branches()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measures the pass that runs inside this context."""
        handles = []
        for layer in self._gate.layers:
            if self._kind == "sublayer":
                handles += self._branch.hooks(layer, self._gate)
            handles.append(layer.register_forward_hook(self._after_layer, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._norms.clear()

    def rows(self) -> Tensor:
        """The influence of each unit at each position, ``[B, S, units]`` float32 on the CPU.

        It is computed from norms, since a cosine of nearly parallel states would be inexact:
        ``1 - cos = (|after - before|² - (|after| - |before|)²) / (2 |before| |after|)``.
        """
        distance, before, after = (
            torch.stack(norms, dim=-1).cpu() for norms in zip(*self._sides, strict=True)
        )
        longer = (after - before).abs()
        product = 2 * before * after
        change = ((distance - longer) * (distance + longer)).clamp_(min=0) / product
        return torch.where(product == 0, 1.0, change)  # a state of zeros has no direction

    def _after_layer(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before, after = _input(args, kwargs), _states(output)
        if self._kind == "layer":
            self._compare(before, after, after - before)
        else:
            attn, mlp, between = self._branch.take()
            if between is before:  # both read the layer's input
                self._compare(before, before + attn, attn)
                self._compare(before, before + mlp, mlp)
            else:
                self._compare(before, between, between - before)
                self._compare(between, after, after - between)
        self._norms = [(after, self._norm(after))]  # the next layer begins with it

    def _compare(self, before: Tensor, after: Tensor, difference: Tensor) -> None:
        """Notes the norms of two states ``[B, S, H]`` and of their difference."""
        self._sides.append((_norm(difference), self._norm(before), self._norm(after)))

    def _norm(self, states: Tensor) -> Tensor:
        """The norm ``[B, S]`` of states ``[B, S, H]``, which neighbouring units share."""
        for known, norm in self._norms:
            if known is states:
                return norm
        norm = _norm(states)
        self._norms.append((states, norm))
        return norm


class _Branches:
    """What the sublayers of the layer that is running read and return.

    Families differ in their norms: before a sublayer, after it, or both. In all of them the MLP
    reads the residual stream, directly or through a child module of the layer, its norm.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[Tensor, Tensor]] = []  # input and output of the other children
        self._attn: Tensor | None = None
        self._mlp: Tensor | None = None
        self._between: Tensor | None = None

    def hooks(self, layer: nn.Module, gate: LayerGate) -> list[Any]:
        """Hooks on the children of a layer; the caller removes them."""
        attn = layer.get_submodule(gate.family.attn)
        mlp = layer.get_submodule(gate.family.mlp or "")
        others = [child for child in layer.children() if child is not attn and child is not mlp]
        return [
            attn.register_forward_hook(self._after_attention),
            mlp.register_forward_hook(self._after_mlp, with_kwargs=True),
            *(child.register_forward_hook(self._after_other) for child in others),
        ]

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of attention and MLP, and the residual stream that the MLP read."""
        assert self._attn is not None and self._mlp is not None and self._between is not None
        taken = self._attn, self._mlp, self._between
        self._calls.clear()
        self._attn = self._mlp = self._between = None
        return taken

    def _after_attention(self, _: nn.Module, __: Any, output: Any) -> None:
        self._attn = _states(output)

    def _after_mlp(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        read = _input(args, kwargs)
        self._mlp = _states(output)
        self._between = next((given for given, made in self._calls if made is read), read)

    def _after_other(self, _: nn.Module, args: Any, output: Any) -> None:
        self._calls.append((args[0], output))


class EarlierInfluence(NamedTuple):
    """Mean influence of each unit over what was read earlier, and over how many positions."""

    mean: Mapping[str, float]
    positions: int


class InfluenceHistory:
    """Influence over everything that a model has read in this process while it was measured.

    It serves prompts that are too short to order the units themselves.
    """

    def __init__(self) -> None:
        self._sums: dict[UnitKind, Tensor] = {}  # [units] float64
        self._positions: dict[UnitKind, int] = {}
        self._answers: dict[tuple[UnitKind, tuple[int, ...]], EarlierInfluence | None] = {}

    def add(self, kind: UnitKind, rows: Tensor) -> None:
        """Adds new positions, ``[S, units]``. Leaves out those with a value that is not finite."""
        rows = rows[rows.isfinite().all(dim=-1)]
        self._sums[kind] = self._sums.get(kind, 0) + rows.double().sum(dim=0)
        self._positions[kind] = self._positions.get(kind, 0) + len(rows)

    def mean(
        self, units: Sequence[str], kind: UnitKind, prompt_ids: Sequence[int]
    ) -> EarlierInfluence | None:
        """What is known now, for the reply to a short prompt; None if it is too little.

        The same prompt gets the same answer as before, so that its reply can be written again.
        """
        key = (kind, tuple(prompt_ids))
        if key not in self._answers:
            positions, answer = self._positions.get(kind, 0), None
            if positions >= MIN_POSITIONS:
                means = (self._sums[kind] / positions).tolist()
                answer = EarlierInfluence(dict(zip(units, means, strict=True)), positions)
            self._answers[key] = answer
            if len(self._answers) > SHORT_PROMPTS:
                del self._answers[next(iter(self._answers))]
        return self._answers[key]


class InfluenceTable:
    """The influence of each unit at the first positions of a sequence, on the CPU.

    A position's influence depends only on the tokens up to it. So what is known stays true as long
    as those tokens stay the same, even where the KV cache no longer holds them.

    Args:
        history: gains every position that is written.

    Attributes:
        kind: which units are measured; None before `measure`.
        length: the positions known.
    """

    def __init__(self, num_layers: int, history: InfluenceHistory) -> None:
        self._num_layers, self._history = num_layers, history
        self.kind: UnitKind | None = None
        self.length = 0
        self._rows = torch.empty(0, 0)  # [capacity, units]

    @property
    def units(self) -> tuple[str, ...]:
        """The units that are measured, in the order of the columns."""
        return () if self.kind is None else unit_names(self._num_layers, self.kind)

    def measure(self, kind: UnitKind) -> None:
        """Sets which units are measured. What is known of another kind is forgotten."""
        if kind != self.kind:
            self.kind, self.length = kind, 0
            self._rows = torch.empty(0, len(self.units))

    def new_meter(self, gate: LayerGate) -> InfluenceMeter:
        """Measures the table's units in one pass; `write` then takes its rows."""
        assert self.kind is not None
        return InfluenceMeter(gate, self.kind)

    def crop(self, length: int) -> None:
        """Forgets the positions from `length` on."""
        self.length = min(self.length, length)

    def write(self, position: int, rows: Tensor) -> None:
        """Adds ``rows`` ``[S, units]`` from `position` on. Positions already known stay."""
        assert self.kind is not None
        assert position <= self.length, "positions before these have not been measured"
        new = rows[self.length - position :]
        end = self.length + len(new)
        if end > len(self._rows):
            larger = torch.empty(max(end, 2 * len(self._rows)), len(self.units))
            larger[: self.length] = self._rows[: self.length]
            self._rows = larger
        self._rows[self.length : end] = new
        self.length = end
        self._history.add(self.kind, new)

    def mean(self, length: int) -> dict[str, float]:
        """Each unit's mean influence over the first `length` positions.

        Raises:
            GenerationError: a value is not finite.
        """
        assert length <= self.length
        return mean_influence(self.units, self._rows[:length])


def mean_influence(units: Sequence[str], rows: Tensor) -> dict[str, float]:
    """Each unit's mean influence over positions, of ``rows`` ``[positions, units]``.

    Raises:
        GenerationError: a value is not finite.
    """
    means = rows.double().mean(dim=0)
    for unit, mean in zip(units, means.tolist(), strict=True):
        if not abs(mean) < float("inf"):
            raise GenerationError(
                f"the states around unit {unit} are not finite, so no order of units can be found",
                (
                    "the weights may be damaged, or the dtype too narrow: try ",
                    Setting("dtype", "float32"),
                ),
            )
    return dict(zip(units, means.tolist(), strict=True))


def _input(args: Any, kwargs: Any) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _states(output: Any) -> Tensor:
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


def _norm(states: Tensor) -> Tensor:
    """The norms ``[B, S]`` of states ``[B, S, H]``, accumulated in float32."""
    norms: Tensor = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)
    return norms
