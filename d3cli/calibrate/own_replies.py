"""The model's own replies, as text to score on.

To score on, replies are sampled at temperature 1, from the model's own distribution. A greedy reply
may fall into a loop, whose tokens are all likely: that would flatter its writer.
"""

from collections.abc import Iterator, Sequence

from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.prompt_order import Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document


def write_reply(
    model: LoadedModel,
    prompt_ids: Sequence[int],
    schedule: Schedule,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
) -> Document:
    """One reply as a document, its end token included.

    Raises:
        PromptError: the prompt leaves no room in the context.
    """
    reply = Engine(model).stream_ids(
        prompt_ids,
        schedule=schedule,
        sampling=SamplingParams(temperature=temperature, seed=seed),
        max_tokens=max_tokens,
    )
    return Document(list(prompt_ids), [chunk.token_id for chunk in reply])


def self_replies(
    model: LoadedModel,
    documents: Sequence[Document],
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
) -> Iterator[Document]:
    """The model's full-depth replies to the documents' prompts, each as soon as it is written.

    Replies of one token are left out: token 0 always runs at full depth.
    """
    full = DepthSchedule.full(model.num_layers)
    for number, document in enumerate(documents):
        reply = write_reply(
            model, document.prompt_ids, full, max_tokens, seed + number, temperature
        )
        if len(reply.response_ids) > 1:
            yield reply
