"""Block Influence: how much each unit changes the hidden state, measured at full depth."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from d3cli.depth.units import parse_unit
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document


@torch.inference_mode()
def measure_influence(
    model: LoadedModel, documents: Sequence[Document], units: Sequence[str]
) -> dict[str, float]:
    """Each unit's Block Influence, averaged over the response tokens.

    It is one minus the cosine between a layer's output without the unit and with it. For a whole
    layer, these are its input and its output (ShortGPT, Men et al., arXiv 2403.03853). For a
    sublayer, the layer runs once more without it.
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
        for name in names:
            with model.gate.limited({name: 0}):
                without = _states(layer.forward(*args, **kwargs))[0, first:].float()
            cosine = torch.nn.functional.cosine_similarity(without, whole, dim=-1)
            sums[name] += float((1 - cosine).sum())

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
    """Units by influence per byte saved, the lowest first."""
    return sorted(influence, key=lambda unit: influence[unit] / model.weight_bytes.of(unit))
