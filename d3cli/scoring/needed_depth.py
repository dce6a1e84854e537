"""How deep each token of a reply had to go: at constant depths, and by the logit lens.

A token's *needed depth* is the least depth of a nested family (the prefixes of a skip order)
from which on every constant depth chooses as full depth does. Evidence for or against D³'s
premise that later tokens need fewer layers. Knows nothing of how a reply came about.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import parse_unit
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import Scorer, head_chunk

LENS_BYTES = 256 << 20  # of layers' outputs that are kept at once


def constant_depth_choices(
    model: LoadedModel, scorer: Scorer, order: Sequence[str]
) -> Iterator[Tensor]:
    """Top choices ``[T]`` at full depth, then with one more unit of the order dropped each time.

    One pass over the response tokens each; the prompts run at full depth, as they do in D³.
    """
    full = DepthSchedule.full(model.num_layers)
    first = min((parse_unit(unit).layer for unit in order), default=0)
    if first:  # what comes before the first unit is the same at every depth
        scorer.remember(full, [first - 1])
    for count in range(len(order) + 1):
        schedule = static_schedule(model.weight_bytes, order[:count]) if count else full
        states = scorer.states(schedule)
        parts = torch.split(states, head_chunk(model))
        yield torch.cat([model.logits(part).argmax(dim=-1) for part in parts]).cpu()


def needed_depths(
    model: LoadedModel, order: Sequence[str], choices: Sequence[Tensor]
) -> list[float]:
    """Each token's needed depth, in layers, from what `constant_depth_choices` gave."""
    depths = [float(model.num_layers)]
    prefixes = (order[:count] for count in range(1, len(order) + 1))
    depths += [static_schedule(model.weight_bytes, prefix).floor for prefix in prefixes]
    table = torch.stack(list(choices))  # [units + 1, T]
    return [
        depths[sum(1 for _ in takewhile(bool, column)) - 1]
        for column in (table == table[0]).T.tolist()
    ]


def saturation_layers(model: LoadedModel, document: Document) -> Iterator[tuple[int, list[int]]]:
    """After how many layers the logit lens has settled on full depth's choice for good.

    That is what early exit would have needed. Gives, group of layers by group from the last to the
    first, how many layers have been looked at, and for each response token but the first the
    result so far.
    """
    scorer = Scorer(model, [document])
    layers = model.num_layers
    one = len(document) * model.causal_lm.config.hidden_size * model.causal_lm.dtype.itemsize
    size = max(1, LENS_BYTES // one)
    settled = [layers] * (len(document.response_ids) - 1)
    open_ = [True] * len(settled)
    choice: list[int] = []
    for end in range(layers, 0, -size):
        group = range(max(0, end - size), end)
        found = [tops[0].tolist() for tops in scorer.lens(group)]
        for layer, tops in zip(reversed(group), reversed(found), strict=True):
            choice = choice or tops  # behind the last layer: full depth's
            for token, top in enumerate(tops):
                open_[token] = open_[token] and top == choice[token]
                if open_[token]:
                    settled[token] = layer + 1
        yield layers - group.start, settled
