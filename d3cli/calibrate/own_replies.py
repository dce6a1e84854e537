"""Free-running replies: a model's own text to score on, and full depth as the judge of D³'s.

Replies are sampled at temperature 1, from the model's own distribution: a greedy reply that has
fallen into a loop is likely token by token, and would flatter whoever wrote it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Drop, Losses, measure_rise
from d3cli.scoring.one_pass import score

# Prompts that the judging of replies uses; and the fewest that it says anything about.
MOST_PROMPTS, FEWEST_PROMPTS = 16, 4
FULL_DEPTH = "full depth"


@dataclass(frozen=True, slots=True)
class Judged:
    """Full depth's verdict on the replies that a schedule wrote.

    Attributes:
        prompts, tokens: how many replies, and of how many tokens in all.
        perplexity: full depth's, on these replies.
        rise: over its perplexity on its own replies to the same prompts; None for those.
    """

    prompts: int
    tokens: int
    perplexity: float
    rise: Drop | None


def write_reply(
    model: LoadedModel,
    prompt_ids: Sequence[int],
    schedule: DepthSchedule,
    max_tokens: int,
    seed: int,
) -> Document:
    """One sampled reply as a document; its end token is part of it.

    Raises:
        PromptError: the prompt leaves no room in the context.
    """
    reply = Engine(model).stream_ids(
        prompt_ids,
        schedule=schedule,
        sampling=SamplingParams(temperature=1.0, seed=seed),
        max_tokens=max_tokens,
    )
    return Document(list(prompt_ids), [chunk.token_id for chunk in reply])


def self_replies(
    model: LoadedModel, documents: Sequence[Document], max_tokens: int, seed: int
) -> Iterator[Document]:
    """The model's own full-depth replies to the documents' prompts, each as it is written.

    Replies of a single token have nothing to score below full depth, and are left out.
    """
    full = DepthSchedule.full(model.num_layers)
    for number, document in enumerate(documents):
        reply = write_reply(model, document.prompt_ids, full, max_tokens, seed + number)
        if len(reply.response_ids) > 1:
            yield reply


def surprise(
    model: LoadedModel, document: Document
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Full depth's negative log-probability of each response token, in nats."""
    scores = score(model, [document], DepthSchedule.full(model.num_layers))
    surprises: NDArray[np.float64] = -scores[0].log_probs.numpy()
    return surprises


def judge(ours: Losses, own: Losses, confidence: float) -> Judged:
    """Full depth's surprise at a schedule's replies, beside that at its own."""
    tokens = np.concatenate(ours)
    rise = None if ours is own else measure_rise(ours, own, confidence)
    return Judged(len(ours), len(tokens), float(np.exp(tokens.mean())), rise)
