"""Log-likelihoods of continuations at a depth schedule.

A continuation is scored as a reply to its context: the context is prefilled at full depth, and
token t of the continuation is predicted at ``depth(t)``, so its first token always runs at full
depth. Knows nothing of text, and nothing of lm-evaluation-harness, whose rules for long texts it
follows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from d3cli.base.errors import PromptError
from d3cli.depth.prompt_order import MIN_POSITIONS, PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document, batch_rows, response_ids, split_by_document
from d3cli.scoring.head import log_probs_and_tops, not_finite
from d3cli.scoring.one_pass import Scorer, response_states


@dataclass(frozen=True, slots=True)
class Likelihood:
    """One continuation of N tokens at a schedule.

    Attributes:
        log_prob: the sum of its tokens' natural log-probabilities.
        is_greedy: whether each token is the top choice, so that a greedy reply would write it.
        tokens: N.
        layers: the sum of the depths that predicted its tokens; N times the number of layers at
            full depth.
    """

    log_prob: float
    is_greedy: bool
    tokens: int
    layers: float


def fit_context(
    context_ids: Sequence[int], continuation_ids: Sequence[int], context_length: int
) -> tuple[Document, int]:
    """A continuation with as much of its context as the model holds, and how much was cut.

    The last token of the continuation is predicted and not read. What does not fit is cut from the
    beginning of the context, of which at least one token stays.

    Raises:
        PromptError: the continuation alone is too long.
    """
    if len(continuation_ids) > context_length:
        raise PromptError(
            f"a continuation to score has {len(continuation_ids):,} tokens, but the model's "
            f"context holds {context_length:,}",
            "use a task with shorter answers, or a model with a longer context",
        )
    room = context_length + 1 - len(continuation_ids)
    cut = max(0, len(context_ids) - room)
    return Document(list(context_ids[cut:]), list(continuation_ids)), cut


def rolling_windows(
    token_ids: Sequence[int], prefix_id: int, context_length: int
) -> list[Document]:
    """A text as documents that predict each of its tokens once.

    The first window follows a prefix token, the others follow the text before them. A window has
    as many tokens as the context holds. The last one may have fewer; its context fills the rest.
    Each is a reply of its own, so its depth begins at full depth again.
    """
    windows = []
    for begin in range(0, len(token_ids), context_length):
        end = min(begin + context_length, len(token_ids))
        before = token_ids[end - context_length - 1 : begin] if begin else [prefix_id]
        windows.append(Document(list(before), list(token_ids[begin:end])))
    return windows


def runs_at_full_depth(document: Document, schedule: Schedule) -> bool:
    """Whether a schedule drops nothing from a document because its prompt decides no order."""
    return (
        isinstance(schedule, PromptSchedule)
        and len(document.prompt_ids) < MIN_POSITIONS
        and schedule.alpha < 1
    )


def log_likelihoods(
    model: LoadedModel,
    documents: Sequence[Document],
    schedule: Schedule,
    rows_per_batch: int | None = None,
) -> Iterator[dict[int, Likelihood]]:
    """The likelihoods of responses at a schedule, by their numbers, batch by batch.

    Documents of similar lengths share a batch, padded on the left. If each prompt decides the
    order, they are scored one by one, as `one_pass.score` does.

    Args:
        rows_per_batch: the most documents in a batch; None leaves it to `batch_rows`.

    Raises:
        ScheduleError, PromptError, GenerationError: as for `one_pass.score`.
    """
    model.check_schedule(schedule)
    numbers = range(len(documents))
    if isinstance(schedule, PromptSchedule):
        for number in numbers:
            scorer = Scorer(model, [documents[number]], schedule.kind)
            ordered = scorer.ordered(schedule)
            states = scorer.states(ordered)
            yield {number: _likelihoods(model, scorer.documents, ordered, states)[0]}
        return
    for batch in batch_rows(model, documents, numbers):
        size = rows_per_batch or len(batch)
        for begin in range(0, len(batch), size):
            rows = batch[begin : begin + size]
            chosen = [documents[row] for row in rows]
            states = response_states(model, chosen, schedule)
            yield dict(zip(rows, _likelihoods(model, chosen, schedule, states), strict=True))


def _likelihoods(
    model: LoadedModel, documents: Sequence[Document], schedule: DepthSchedule, states: Tensor
) -> list[Likelihood]:
    """One for each document; ``states`` ``[T, H]`` predict their responses.

    Raises:
        GenerationError: a log-probability is not finite. The harness would take NaN for a number,
            and count the first choice of every question.
    """
    ids = response_ids(documents)
    log_probs, tops = log_probs_and_tops(model, states, ids)
    if not log_probs.isfinite().all():
        raise not_finite()
    found = zip(
        split_by_document(log_probs, documents),
        split_by_document(tops == ids, documents),
        strict=True,
    )
    return [
        Likelihood(
            log_prob=float(each.sum()),
            is_greedy=bool(greedy.all()),
            tokens=len(each),
            layers=sum(schedule.depth(t) for t in range(len(each))),
        )
        for each, greedy in found
    ]
