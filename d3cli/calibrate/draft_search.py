"""Finds the schedule by which a model drafts best for its own lossless replies.

That is another optimum than the fastest schedule within a rise of perplexity: a drafted token that
full depth would not choose costs time, and no quality. Knows nothing of files or terminals.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.draft_candidates import DraftCandidate, draft_candidates, units_to_rank
from d3cli.calibrate.draft_clock import DraftClock
from d3cli.calibrate.influence import measure_influence
from d3cli.calibrate.kinds import kinds_of
from d3cli.calibrate.result import CalibrationProgress
from d3cli.calibrate.texts import split
from d3cli.decode.draft.length import best_length
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document, batch_rows, split_by_document
from d3cli.scoring.head import top_choices
from d3cli.scoring.intervals import share_with_bound
from d3cli.scoring.one_pass import Scorer

# Documents on which influence is measured; it changes little with more.
INFLUENCE_DOCUMENTS = 8
Hits = list[NDArray[np.bool_]]  # of each document: where the choice is full depth's
Progress = Generator[CalibrationProgress, None, list[Hits]]


@dataclass(frozen=True, slots=True)
class DraftTried:
    """A candidate, and what it promises.

    Attributes:
        agreement: share of the replies' tokens at which it chooses what full depth does. Token 0
            is left out, since the prompt's pass chooses it.
        length: the best number of tokens to draft; 0 if no draft pays.
        gain: the tokens that this gives in the time of one at full depth; 1 if no draft pays.
    """

    candidate: DraftCandidate
    agreement: float
    length: int
    gain: float


@dataclass(frozen=True, slots=True)
class DraftOutcome:
    """What a search for drafts found.

    Attributes:
        tried: all candidates on the search half.
        best: the one that promises the most there, on the unseen half; its cost is a measured one.
        agreement_low, gain_low: lower bounds there, with the confidence of the settings.
        documents, tokens: of the unseen half; tokens that count.
        verification: of 1, 2, ... drafted tokens: what its pass takes, in steps at full depth.
        step_seconds: of a step at full depth.
    """

    tried: tuple[DraftTried, ...]
    best: DraftTried
    agreement_low: float
    gain_low: float
    documents: int
    tokens: int
    verification: tuple[float, ...]
    step_seconds: float
    seconds: float


@dataclass(slots=True)
class DraftSearch:
    """One search: iterate it for its progress, then read its `outcome`.

    Agreement is measured in one pass over each reply, all of it below full depth. In a real draft
    only the last few tokens are, so real drafts are accepted a little more often.

    Args:
        documents: replies of the model itself at full depth. One half is searched, the other tests
            what was found.
        seed: splits them.
        confidence: of the lower bounds.
        clock: finds what drafts and verifications cost.

    Raises:
        UsageError: the model runs at full depth only.
    """

    model: LoadedModel
    documents: Sequence[Document]
    seed: int
    confidence: float
    clock: Callable[[LoadedModel, Document], DraftClock] = DraftClock
    outcome: DraftOutcome = field(init=False)

    def __post_init__(self) -> None:
        kinds_of(self.model, "auto")  # refuses a model that cannot drop anything

    def __iter__(self) -> Iterator[CalibrationProgress]:
        began, model = time.monotonic(), self.model
        search, unseen = split(self.documents, self.seed)
        yield CalibrationProgress("decode steps", 0.0)
        clock = self.clock(model, max(search, key=len))
        costs = clock.steps()
        yield CalibrationProgress("passes over several tokens", 0.1)
        verifications = clock.verifications()
        yield CalibrationProgress("influence of each unit", 0.2)
        influence = measure_influence(model, search[:INFLUENCE_DOCUMENTS], units_to_rank(model))
        candidates = draft_candidates(model, influence, costs)
        hits = yield from _agreements(model, search, candidates, "agreement", 0.3, 0.9)
        tried = [
            _promise(candidate, float(np.concatenate(each).mean()), verifications)
            for candidate, each in zip(candidates, hits, strict=True)
        ]
        # Where nothing pays, the one that agrees most for its cost comes closest.
        best = max(tried, key=lambda one: (one.gain, one.agreement - one.candidate.cost)).candidate
        best = replace(best, cost=clock.drafted(best.schedule.skip_order))  # so far predicted
        [found] = yield from _agreements(model, unseen, [best], "unseen replies", 0.9, 1.0)
        agreement, low = share_with_bound(found, self.confidence)
        self.outcome = DraftOutcome(
            tried=tuple(tried),
            best=_promise(best, agreement, verifications),
            agreement_low=low,
            gain_low=_promise(best, low, verifications).gain,
            documents=len(found),
            tokens=sum(map(len, found)),
            verification=tuple(verifications),
            step_seconds=costs.seconds,
            seconds=time.monotonic() - began,
        )


def _promise(
    candidate: DraftCandidate, agreement: float, verifications: Sequence[float]
) -> DraftTried:
    length, gain = best_length(agreement, candidate.cost, [1.0, *verifications], len(verifications))
    return DraftTried(candidate, agreement, length, gain)


def _agreements(
    model: LoadedModel,
    documents: Sequence[Document],
    candidates: Sequence[DraftCandidate],
    doing: str,
    begin: float,
    end: float,
) -> Progress:
    """Of each candidate, where it chooses what full depth does.

    Args:
        begin, end: the shares of all work that are done before and after.
    """
    full = DepthSchedule.full(model.num_layers)
    found: list[Hits] = [[] for _ in candidates]
    batches = batch_rows(model, documents, range(len(documents)))
    for number, rows in enumerate(batches):
        batch = [documents[row] for row in rows]
        scorer = Scorer(model, batch)
        scorer.remember(full, range(model.num_layers - 1))
        chosen = top_choices(model, scorer.states(full))
        for at, candidate in enumerate(candidates):
            done = (number + at / len(candidates)) / len(batches)
            yield CalibrationProgress(doing, begin + (end - begin) * done)
            same = top_choices(model, scorer.states(candidate.schedule)) == chosen
            found[at] += [each[1:].numpy() for each in split_by_document(same, batch)]
    return found
