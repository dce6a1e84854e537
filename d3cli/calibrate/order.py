"""In which order to drop units, measured on a model: by influence, or greedily by loss per byte.

Knows how units rank; which of the orders' schedules is worth having is the search's affair.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d3cli.calibrate.evaluator import Evaluator, OutOfTime
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import parse_unit
from d3cli.model.model import LoadedModel
from d3cli.scoring.one_pass import Document

UnitKind = Literal["layer", "sublayer"]

# Of the units left, each round tries those that looked best the last time, and those of the least
# influence: losses change little from one drop to the next, so one far down is not about to lead.
BEST_BEFORE, LEAST_INFLUENCE = 4, 2


def units_of(model: LoadedModel, kind: UnitKind) -> list[str]:
    """All units but those of the first and the last layer, which D³ always keeps."""
    inner = range(1, model.num_layers - 1)
    if kind == "layer":
        return [str(layer) for layer in inner]
    return [f"{layer}.{part}" for layer in inner for part in ("attn", "mlp")]


@torch.inference_mode()
def measure_influence(
    model: LoadedModel, documents: Sequence[Document], units: Sequence[str]
) -> dict[str, float]:
    """Each unit's Block Influence: how far it turns the hidden state, at full depth.

    One minus the cosine between a layer's output without the unit and with it, mean over response
    tokens. For a whole layer, that is between its input and its output (ShortGPT, Men et al.,
    arXiv 2403.03853); for a sublayer the layer runs once more without it.
    """
    sums, tokens = dict.fromkeys(units, 0.0), 0
    for document in documents:
        ids = torch.tensor([[*document.prompt_ids, *document.response_ids[:-1]]])
        first = len(document.prompt_ids) - 1  # predicts the first response token
        with _comparing(model, units, first, sums):
            model.hidden_states(ids.to(model.device))
        tokens += len(document.response_ids)
    return {unit: value / tokens for unit, value in sums.items()}


@contextmanager
def _comparing(
    model: LoadedModel, units: Sequence[str], first: int, sums: dict[str, float]
) -> Iterator[None]:
    by_layer: dict[int, list[str]] = {}
    for unit in units:
        by_layer.setdefault(parse_unit(unit).layer, []).append(unit)

    def compare(layer: Any, args: Any, kwargs: Any, output: Any, names: list[str]) -> None:
        whole = _states(output)[0, first:].float()
        limits = model.gate.limits
        for name in names:
            model.gate.limits = {name: 0}
            without = _states(layer.forward(*args, **kwargs))[0, first:].float()
            cosine = torch.nn.functional.cosine_similarity(without, whole, dim=-1)
            sums[name] += float((1 - cosine).sum())
        model.gate.limits = limits

    hooks = [
        model.gate.layers[layer].register_forward_hook(
            lambda module, args, kwargs, output, names=names: compare(
                module, args, kwargs, output, names
            ),
            with_kwargs=True,
        )
        for layer, names in by_layer.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _states(output: Any) -> Tensor:
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


def order_by_influence(model: LoadedModel, influence: Mapping[str, float]) -> list[str]:
    """Units by influence per byte saved, the least first."""
    return sorted(influence, key=lambda unit: influence[unit] / model.weight_bytes.of(unit))


def schedule_of(
    model: LoadedModel, order: Sequence[str], alpha: float, start: int
) -> DepthSchedule:
    """A schedule over a skip order; the core is the layers before and behind those it names."""
    layers = [parse_unit(unit).layer for unit in order]
    return DepthSchedule(
        model.num_layers,
        alpha,
        start,
        min(layers, default=0),
        model.num_layers - 1 - max(layers, default=model.num_layers - 1),
        tuple(order),
        tuple(map(model.weight_bytes.weight, order)),
    )


def static_schedule(model: LoadedModel, order: Sequence[str]) -> DepthSchedule:
    """Drops the whole order from token 1 on: constant depth."""
    before_last = sum(map(model.weight_bytes.weight, order[:-1]))
    # Just below the alpha at which the last unit goes, so that the first step drops them all.
    return schedule_of(model, order, 1 - (before_last + 1e-4) / model.num_layers, 0)


@dataclass(slots=True)
class GreedyOrder:
    """Drops, again and again, the unit whose loss per byte saved is least.

    A few documents cannot tell units apart that do little. So of those that are within two standard
    errors of the best one, the unit of the least influence per byte goes.

    Iterate it: each item is a static schedule just tried. It may be left at any time; `order`
    holds the units chosen so far.

    Args:
        evaluator: scores static schedules on its first `documents`.
        ranking: all units by influence per byte, the least first.
        most_lost: stops where a unit's drop takes the loss beyond so many nats per token.

    Attributes:
        order: the skip order so far.
        cut: whether time ended it.
    """

    model: LoadedModel
    evaluator: Evaluator
    documents: int
    ranking: Sequence[str]
    most_lost: float
    order: list[str] = field(default_factory=list)
    cut: bool = False

    def __iter__(self) -> Iterator[DepthSchedule]:
        left = list(self.ranking)
        looked: dict[str, float] = {}  # nats lost per byte saved, when last tried
        before: NDArray[np.float64] = np.zeros(self.documents)
        while left:
            # All that is tried in one round agrees until the layer where it drops one unit more.
            so_far = static_schedule(self.model, self.order)
            self.evaluator.remember(so_far, range(self.model.num_layers - 1))
            rates: dict[str, NDArray[np.float64]] = {}
            sums: dict[str, NDArray[np.float64]] = {}
            for unit in self._entrants(left, looked):
                schedule = static_schedule(self.model, [*self.order, unit])
                try:
                    losses = self.evaluator.losses(schedule, self.documents)
                except OutOfTime:
                    self.cut = True
                    return
                yield schedule
                sums[unit] = np.array([loss.sum() for loss in losses])
                rates[unit] = (sums[unit] - before) / self.model.weight_bytes.of(unit)
                looked[unit] = float(rates[unit].sum())
            chosen = next(unit for unit in left if unit in rates and _near_best(unit, rates))
            tokens = sum(len(d.response_ids) for d in self.evaluator.documents[: self.documents])
            if sums[chosen].sum() / tokens > self.most_lost:
                return
            self.order.append(chosen)
            left.remove(chosen)
            before = sums[chosen]

    @staticmethod
    def _entrants(left: Sequence[str], looked: Mapping[str, float]) -> list[str]:
        if not looked:
            return list(left)
        best = sorted(left, key=looked.__getitem__)[:BEST_BEFORE]
        return list(dict.fromkeys([*best, *left[:LEAST_INFLUENCE]]))


def _near_best(unit: str, rates: Mapping[str, NDArray[np.float64]]) -> bool:
    """Whether a unit's loss per byte is within two standard errors of the least."""
    best = min(rates, key=lambda other: float(rates[other].sum()))
    gap = rates[unit] - rates[best]  # one number a document
    return bool(gap.sum() <= 2 * math.sqrt(len(gap)) * gap.std(ddof=1))
