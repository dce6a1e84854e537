"""The text of a calibration: documents that are read, or replies that the model writes first."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from d3cli.base.errors import CalibrationError
from d3cli.cli.calibrate.options import DOCUMENTS
from d3cli.cli.output import Output

if TYPE_CHECKING:
    from d3cli.calibrate.settings import CalibrationSettings
    from d3cli.calibrate.texts import Sample
    from d3cli.model.load import CheckText
    from d3cli.model.model import LoadedModel
    from d3cli.scoring.documents import Document


def template_check(samples: Sequence["Sample"] | None) -> "CheckText | None":
    """Returns what refuses a chat template that cannot render the text; None if it needs none.

    The built-in text, which stands for None, consists of conversations.
    """
    from d3cli.text.chat_template import check_template

    if samples is None:
        return partial(check_template, roles=("user",))
    first = next((sample.messages for sample in samples if sample.messages), None)
    if first is None:
        return None
    return partial(check_template, roles=[message["role"] for message in first])


def read_documents(
    model: "LoadedModel", samples: Sequence["Sample"] | None, count: int | None, seed: int
) -> list["Document"]:
    """The documents of these samples, or of the built-in text for None: at most `count`."""
    from d3cli.calibrate.texts import builtin_samples, choose, encode_samples

    found = encode_samples(model, builtin_samples(model) if samples is None else samples)
    return choose(found, DOCUMENTS if count is None else count, seed)


def write_replies(
    output: Output,
    model: "LoadedModel",
    prompts: Sequence["Document"],
    settings: "CalibrationSettings",
    began: float,
    temperature: float = 1.0,
) -> list["Document"]:
    """The model's own replies to the prompts, as many as it writes in half of the time.

    Raises:
        CalibrationError: there are too few.
    """
    from d3cli.calibrate.own_replies import self_replies
    from d3cli.calibrate.texts import MIN_DOCUMENTS

    found: list[Document] = []

    def steps() -> Iterator[tuple[str, float]]:
        replies = self_replies(model, prompts, settings.reply_tokens, settings.seed, temperature)
        for number, reply in enumerate(replies, start=1):
            found.append(reply)
            yield f"the model's own replies: {number}", number / len(prompts)
            if time.monotonic() - began > settings.max_seconds / 2:
                return

    output.progress.follow(steps())
    if len(found) < MIN_DOCUMENTS:
        raise CalibrationError(
            f"the model wrote {len(found)} replies of two or more tokens in half of --max-time, "
            f"but {MIN_DOCUMENTS} are needed",
            "raise --max-time or lower --reply-tokens",
        )
    if len(found) < len(prompts):
        output.note(f"replies: {len(found)} of {len(prompts)} were written in half of the time")
    return found
