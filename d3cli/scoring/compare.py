"""A schedule beside full depth, token by token: log-probability, rank, KL divergence, top choice.

Dearer than `scoring`, since both distributions are held side by side; for the end of a search and
for reports. Knows nothing of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document, batch_rows
from d3cli.scoring.one_pass import Scorer, head_chunk


@dataclass(frozen=True, slots=True)
class Comparison:
    """One response of N tokens under a schedule and at full depth.

    Attributes:
        log_probs, full_log_probs: ``[N]`` float64, natural log-probability of each token.
        depths: ``[N]`` float64, layers that predicted each token.
        ranks: ``[N]`` the token's place among all by D³'s logits; 1 is the top choice.
        kl: ``[N]`` nats, Kullback-Leibler divergence of D³ from full depth, ``KL(full || D³)``.
        top_ids, full_top_ids: ``[N]`` the top choice of each.
    """

    log_probs: Tensor
    full_log_probs: Tensor
    depths: Tensor
    ranks: Tensor
    kl: Tensor
    top_ids: Tensor
    full_top_ids: Tensor

    @property
    def same_top(self) -> Tensor:
        """``[N]`` whether both have the same top choice."""
        return self.top_ids == self.full_top_ids


def compare(
    model: LoadedModel, documents: Sequence[Document], schedules: Sequence[DepthSchedule]
) -> list[list[Comparison]]:
    """Compares schedules with full depth on the same tokens; one list a schedule.

    Memory: keys, values and hidden states of one batch, and logits in chunks of 64 MB, of which a
    handful exist at once.

    Raises:
        ScheduleError, PromptError: as for `scoring.score`.
    """
    full = DepthSchedule.full(model.num_layers)
    found: list[dict[int, Comparison]] = [{} for _ in schedules]
    for rows in batch_rows(model, documents, range(len(documents))):
        batch = [documents[row] for row in rows]
        scorer = Scorer(model, batch)
        reference = scorer.states(full)
        for schedule, comparisons in zip(schedules, found, strict=True):
            states = scorer.states(schedule)
            each = _compare_states(model, states, reference, batch, schedule)
            comparisons |= dict(zip(rows, each, strict=True))
    return [[comparisons[row] for row in range(len(documents))] for comparisons in found]


def _compare_states(
    model: LoadedModel,
    states: Tensor,
    reference: Tensor,
    documents: Sequence[Document],
    schedule: DepthSchedule,
) -> list[Comparison]:
    """``states`` and ``reference`` are ``[T, H]``, document by document."""
    lengths = [len(document.response_ids) for document in documents]
    ids = torch.tensor([id_ for document in documents for id_ in document.response_ids])
    size = head_chunk(model)
    parts = [
        _compare_chunk(model, *chunk)
        for chunk in zip(
            torch.split(states, size),
            torch.split(reference, size),
            torch.split(ids.to(states.device), size),
            strict=True,
        )
    ]
    columns = [torch.split(torch.cat(column), lengths) for column in zip(*parts, strict=True)]
    return [
        Comparison(
            log_probs,
            full_log_probs,
            torch.tensor([schedule.depth(t) for t in range(len(kl))], dtype=torch.float64),
            ranks,
            kl,
            top_ids,
            full_top_ids,
        )
        for log_probs, full_log_probs, ranks, kl, top_ids, full_top_ids in zip(
            *columns, strict=True
        )
    ]


def _compare_chunk(
    model: LoadedModel, hidden: Tensor, full_hidden: Tensor, ids: Tensor
) -> tuple[Tensor, ...]:
    ours = model.logits(hidden).log_softmax(dim=-1)  # [S, V]
    full = model.logits(full_hidden).log_softmax(dim=-1)
    picked = ours.gather(-1, ids[:, None])
    return (
        picked[:, 0].double().cpu(),
        full.gather(-1, ids[:, None])[:, 0].double().cpu(),
        (1 + (ours > picked).sum(dim=-1)).cpu(),
        torch.nn.functional.kl_div(ours, full, log_target=True, reduction="none")
        .sum(dim=-1)
        .double()
        .cpu(),
        ours.argmax(dim=-1).cpu(),
        full.argmax(dim=-1).cpu(),
    )
