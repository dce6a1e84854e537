"""Block Influence: how much each unit changes the hidden state, measured at full depth."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document


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

        def add(unit: str, without: Tensor, whole: Tensor, first: int = first) -> None:
            parts = without[0, first:].float(), whole[0, first:].float()
            cosine = torch.nn.functional.cosine_similarity(*parts, dim=-1)
            sums[unit] += float((1 - cosine).sum())

        model.without_units(ids.to(model.device), units, add)
        tokens += len(document.response_ids)
    return {unit: value / tokens for unit, value in sums.items()}


def order_by_influence(model: LoadedModel, influence: Mapping[str, float]) -> list[str]:
    """Units by influence per byte saved, the lowest first."""
    return sorted(influence, key=lambda unit: influence[unit] / model.weight_bytes.of(unit))
