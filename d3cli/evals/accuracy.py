"""How many answers of a task are right at full depth and at a schedule.

Both answer the same questions, so they are compared in pairs. Knows nothing of files or terminals.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from d3cli.base.errors import ContextFullError
from d3cli.decode.conversation import inside
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.prompt_order import Schedule
from d3cli.evals.tasks import Question
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.text.chat_template import encode_chat, own_template
from d3cli.text.reasoning import split_reasoning


@dataclass(frozen=True, slots=True)
class Share:
    """The share of right answers.

    Attributes:
        low, high: one-sided bounds by Wilson's score interval (1927). Each alone holds with the
            requested confidence.
    """

    right: int
    questions: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.right / self.questions


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A task at full depth and at a schedule.

    Attributes:
        only_full, only_schedule: questions that only one of them answers right.
        p_value: how likely a difference as large is if both are equally good, by McNemar's exact
            test (two-sided).
    """

    full: Share
    schedule: Share
    only_full: int
    only_schedule: int
    p_value: float


def answer(model: LoadedModel, prompt_ids: Sequence[int], schedule: Schedule, most: int) -> str:
    """The answer of a greedy reply of at most `most` tokens: without a reasoning model's thinking.

    Raises:
        GenerationError: the logits are not finite.
    """
    reply = Engine(model).stream_ids(
        prompt_ids,
        schedule=schedule,
        sampling=SamplingParams.resolve({"temperature": 0}, model.text.generation_settings),
        max_tokens=most,
        continues=not own_template(model.tokenizer),
    )
    for _ in reply:
        pass
    return split_reasoning(inside(reply) + reply.text)[1]


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions of a task that a model can be asked.

    Attributes:
        prompts: each question with its prompt as token ids.
        seen: how many questions were left out because the search has read their prompts.
        too_long: how many were left out because their prompts leave a reply no room.
    """

    prompts: tuple[tuple[Question, tuple[int, ...]], ...]
    seen: int
    too_long: int


def questions_for(
    model: LoadedModel, questions: Sequence[Question], search: Sequence[Document], seed: int
) -> Asked:
    """The unseen questions in a seeded random order, so that the first ones are a fair sample.

    Args:
        search: what a search has read.

    Raises:
        ModelError: the chat template cannot render a prompt.
    """
    read = {tuple(document.prompt_ids) for document in search}
    found: list[tuple[Question, tuple[int, ...]]] = []
    seen = too_long = 0
    for question in questions:
        messages = [{"role": "user", "content": question.prompt}]
        context = model.context_length
        try:
            ids = encode_chat(model.tokenizer, messages, model.text.renderer, context=context)
        except ContextFullError:
            ids = []
        if not ids or len(ids) >= context:
            too_long += 1
        elif tuple(ids) in read:
            seen += 1
        else:
            found.append((question, tuple(ids)))
    random.Random(seed).shuffle(found)  # noqa: S311 - no secret
    return Asked(tuple(found), seen, too_long)


def compare_answers(
    full: Sequence[bool], schedule: Sequence[bool], confidence: float
) -> TaskResult:
    """The result of a task, from which questions each of them answers right."""
    from scipy.stats import binomtest  # slow to import

    only_full = sum(a and not b for a, b in zip(full, schedule, strict=True))
    only_schedule = sum(b and not a for a, b in zip(full, schedule, strict=True))
    differ = only_full + only_schedule
    p_value = float(binomtest(only_full, differ).pvalue) if differ else 1.0
    return TaskResult(
        _share(full, confidence), _share(schedule, confidence), only_full, only_schedule, p_value
    )


def _share(right: Sequence[bool], confidence: float) -> Share:
    from scipy.stats import binomtest  # slow to import

    level = 2 * confidence - 1  # two-sided, so that each bound alone has our confidence
    found = binomtest(sum(right), len(right)).proportion_ci(level, method="wilson")
    return Share(sum(right), len(right), float(found.low), float(found.high))
