"""A schedule and full depth compared token by token: log-probability, rank, KL divergence, argmax.

Costs more than `one_pass`, since both distributions are held at once. It serves reports, and the
end of a search. Knows nothing of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document, batch_rows, response_ids, split_by_document
from d3cli.scoring.head import chunks
from d3cli.scoring.one_pass import Scorer


@dataclass(frozen=True, slots=True)
class Comparison:
    """One response of N tokens under a schedule and at full depth.

    Attributes:
        log_probs, full_log_probs: ``[N]`` float64, natural log-probability of each token.
        depths: ``[N]`` float64, layers that predicted each token.
        ranks: ``[N]`` the token's rank by D³'s logits; 1 is the top choice.
        kl: ``[N]`` nats, Kullback-Leibler divergence of D³ from full depth, ``KL(full || D³)``.
        top_ids, full_top_ids: ``[N]`` the top choices of D³ and of full depth.
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
    model: LoadedModel, documents: Sequence[Document], schedules: Sequence[Schedule]
) -> list[list[Comparison]]:
    """Compares schedules with full depth on the same tokens; returns one list per schedule.

    Documents are read one by one if their prompts decide the order of a schedule.

    Memory: keys, values and hidden states of one batch, and a few chunks of logits of 64 MB.

    Raises:
        ScheduleError, PromptError: as for `one_pass.score`.
    """
    full = DepthSchedule.full(model.num_layers)
    found: list[dict[int, Comparison]] = [{} for _ in schedules]
    kind = next((one.kind for one in schedules if isinstance(one, PromptSchedule)), None)
    batches = [[row] for row in range(len(documents))]
    if kind is None:
        batches = batch_rows(model, documents, range(len(documents)))
    for rows in batches:
        batch = [documents[row] for row in rows]
        scorer = Scorer(model, batch, kind)
        reference = scorer.states(full)
        for schedule, comparisons in zip(schedules, found, strict=True):
            ordered = scorer.ordered(schedule)
            states = scorer.states(ordered)
            each = _compare_states(model, states, reference, batch, ordered)
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
    ids = response_ids(documents).to(states.device)
    parts = [_compare_chunk(model, *part) for part in chunks(model, states, reference, ids)]
    columns = [
        split_by_document(torch.cat(column), documents) for column in zip(*parts, strict=True)
    ]
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
    model: LoadedModel, states: Tensor, reference: Tensor, ids: Tensor
) -> tuple[Tensor, ...]:
    """The columns of `Comparison` except the depths, for one chunk of S tokens."""
    ours = model.logits(states).log_softmax(dim=-1)  # [S, V]
    full = model.logits(reference).log_softmax(dim=-1)
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
