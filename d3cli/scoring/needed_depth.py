"""How deep each token of a reply had to go: by constant depths, and by the logit lens.

A token's *needed depth* is the minimum depth, in a nested family (the prefixes of a skip order),
from which on every constant depth makes the same choice as full depth. It is evidence for or
against D³'s premise that later tokens need fewer layers. Knows nothing of how a reply was made.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import parse_unit
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.head import top_choices
from d3cli.scoring.one_pass import Scorer

LENS_BYTES = 256 << 20  # of layer outputs that are kept at once


def constant_depth_choices(
    model: LoadedModel, scorer: Scorer, order: Sequence[str]
) -> Iterator[Tensor]:
    """Yields top choices ``[T]``: at full depth, then with one more unit of `order` dropped each.

    Each depth takes one pass over the response tokens. The prompts run at full depth, as in D³.
    """
    full = DepthSchedule.full(model.num_layers)
    first = min((parse_unit(unit).layer for unit in order), default=0)
    if first:  # the layers before the first unit compute the same at every depth
        scorer.remember(full, [first - 1])
    for count in range(len(order) + 1):
        schedule = static_schedule(model.weight_bytes, order[:count]) if count else full
        yield top_choices(model, scorer.states(schedule))


def needed_depths(
    model: LoadedModel, order: Sequence[str], choices: Sequence[Tensor]
) -> list[float]:
    """Each token's needed depth, in layers, from what `constant_depth_choices` yielded."""
    depths = [float(model.num_layers)]
    prefixes = (order[:count] for count in range(1, len(order) + 1))
    depths += [static_schedule(model.weight_bytes, prefix).floor for prefix in prefixes]
    table = torch.stack(list(choices))  # [units + 1, T]
    return [
        depths[sum(1 for _ in takewhile(bool, column)) - 1]
        for column in (table == table[0]).T.tolist()
    ]


def saturation_layers(model: LoadedModel, document: Document) -> Iterator[tuple[int, list[int]]]:
    """Finds after how many layers the logit lens settles on full depth's choice for good.

    Early exit would need that many layers. The layers are looked at in groups, from the last to
    the first.

    Yields:
        After each group, how many layers have been looked at, and the result so far for each
        response token except the first.
    """
    scorer = Scorer(model, [document])
    layers = model.num_layers
    one = len(document) * model.causal_lm.config.hidden_size * model.causal_lm.dtype.itemsize
    size = max(1, LENS_BYTES // one)
    settled = [layers] * (len(document.response_ids) - 1)
    agrees = [True] * len(settled)
    choice: list[int] = []
    for end in range(layers, 0, -size):
        group = range(max(0, end - size), end)
        found = [tops[0].tolist() for tops in scorer.lens(group)]
        for layer, tops in zip(reversed(group), reversed(found), strict=True):
            choice = choice or tops  # after the last layer: full depth's choice
            for token, top in enumerate(tops):
                agrees[token] = agrees[token] and top == choice[token]
                if agrees[token]:
                    settled[token] = layer + 1
        yield layers - group.start, settled
