"""A model's full depth on documents, kept while the model itself is gone.

The model in other forms of its weights is compared with it later, token by token. Knows nothing of
which forms there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document, batch_rows, response_ids, split_by_document
from d3cli.scoring.head import chunks
from d3cli.scoring.one_pass import Scorer

# Whole distributions of a vocabulary would take gigabytes, so the most likely tokens are kept.
TOP = 64


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Full depth on one response of N tokens.

    Attributes:
        log_probs: ``[N]`` float64, natural log-probability of each token.
        top_ids: ``[N, K]`` the most likely tokens, the first one first.
        top_log_probs: ``[N, K]`` float32, theirs.
    """

    log_probs: Tensor
    top_ids: Tensor
    top_log_probs: Tensor


@dataclass(frozen=True, slots=True)
class Compared:
    """One response of N tokens under a schedule, beside a snapshot of full depth.

    Attributes:
        schedule: the one that ran: that in the prompt's own order if the prompt decides it.
        losses: ``[N]`` nats lost by each token.
        kl: ``[N]`` nats, ``KL(full || this)`` with all tokens but the snapshot's as one: a lower
            bound that comes close.
        same_top: ``[N]`` whether both have the same top choice.
        ranks: ``[N]`` the token's rank by these logits; 1 is the top choice.
    """

    schedule: DepthSchedule
    losses: NDArray[np.float64]
    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    ranks: NDArray[np.int64]


def take_snapshots(
    model: LoadedModel, documents: Sequence[Document]
) -> Iterator[Mapping[int, Snapshot]]:
    """Runs full depth on documents; yields those of each batch, by the documents' indices.

    Raises:
        PromptError: a document has an empty prompt or response, or exceeds the model's context.
    """
    full = DepthSchedule.full(model.num_layers)
    for rows in batch_rows(model, documents, range(len(documents))):
        batch = [documents[row] for row in rows]
        states, ids = Scorer(model, batch).states(full), response_ids(batch)
        parts = [
            _snapshot_chunk(model, *part) for part in chunks(model, states, ids.to(states.device))
        ]
        columns = [
            split_by_document(torch.cat(column), batch) for column in zip(*parts, strict=True)
        ]
        yield dict(zip(rows, map(Snapshot, *columns), strict=True))


def _snapshot_chunk(model: LoadedModel, states: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """The columns of `Snapshot` for one chunk of S tokens."""
    log_probs = model.logits(states).log_softmax(dim=-1)  # [S, V]
    top = log_probs.topk(min(TOP, log_probs.shape[-1]))
    picked = log_probs.gather(-1, ids[:, None])[:, 0]
    return picked.double().cpu(), top.indices.cpu(), top.values.cpu()


def compare_with(
    model: LoadedModel,
    documents: Sequence[Document],
    snapshots: Sequence[Snapshot],
    schedules: Sequence[Schedule],
) -> Iterator[Mapping[int, list[Compared]]]:
    """Compares schedules with snapshots of the same documents.

    Documents are read one by one if their prompts decide the order of a schedule.

    Yields:
        For each batch: by the documents' indices, what was found under each schedule.

    Raises:
        ScheduleError, PromptError: as for `one_pass.score`.
    """
    kind = next((one.kind for one in schedules if isinstance(one, PromptSchedule)), None)
    batches = [[row] for row in range(len(documents))]
    if kind is None:
        batches = batch_rows(model, documents, range(len(documents)))
    for rows in batches:
        batch = [documents[row] for row in rows]
        kept = [snapshots[row] for row in rows]
        scorer = Scorer(model, batch, kind)
        found = [_compare(model, scorer, scorer.ordered(one), kept) for one in schedules]
        yield {row: [each[at] for each in found] for at, row in enumerate(rows)}


def _compare(
    model: LoadedModel, scorer: Scorer, schedule: DepthSchedule, kept: Sequence[Snapshot]
) -> list[Compared]:
    states, ids = scorer.states(schedule), response_ids(scorer.documents)
    references = (
        torch.cat([getattr(one, name) for one in kept]).to(states.device)
        for name in ("log_probs", "top_ids", "top_log_probs")
    )
    parts = [
        _compare_chunk(model, *part)
        for part in chunks(model, states, ids.to(states.device), *references)
    ]
    columns = [
        split_by_document(torch.cat(column), scorer.documents)
        for column in zip(*parts, strict=True)
    ]
    return [
        Compared(schedule, *(column.numpy() for column in each))
        for each in zip(*columns, strict=True)
    ]


def _compare_chunk(
    model: LoadedModel,
    states: Tensor,
    ids: Tensor,
    full: Tensor,
    top_ids: Tensor,
    top_log_probs: Tensor,
) -> tuple[Tensor, ...]:
    """The columns of `Compared` except the schedule, for one chunk of S tokens."""
    ours = model.logits(states).log_softmax(dim=-1)  # [S, V]
    picked = ours.gather(-1, ids[:, None])
    return (
        (full - picked[:, 0].double()).cpu(),
        _coarse_kl(top_log_probs.double(), ours.gather(-1, top_ids).double()).cpu(),
        (ours.argmax(dim=-1) == top_ids[:, 0]).cpu(),
        (1 + (ours > picked).sum(dim=-1)).cpu(),
    )


def _coarse_kl(theirs: Tensor, ours: Tensor) -> Tensor:
    """KL divergence ``[S]`` from log-probabilities ``[S, K]`` of some tokens; the rest is one."""
    rest_theirs, rest_ours = (
        (1 - each.exp().sum(dim=-1)).clamp(min=1e-12) for each in (theirs, ours)
    )
    inside = (theirs.exp() * (theirs - ours)).sum(dim=-1)
    outside: Tensor = rest_theirs * (rest_theirs / rest_ours).log()
    return inside + outside
