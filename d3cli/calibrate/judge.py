"""Free-running replies judged by full depth: its perplexity on what each schedule wrote."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from d3cli.calibrate.forms import ModelForms
from d3cli.calibrate.own_replies import write_reply
from d3cli.calibrate.result import CalibrationProgress, Judged, Outcome
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.depth.prompt_order import Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Losses, measure_rise
from d3cli.scoring.one_pass import score

# The most prompts that are answered, and the fewest that support a verdict.
MAX_PROMPTS, MIN_PROMPTS = 16, 4
FULL_DEPTH, CHOSEN, CONSTANT, DECAYING = "full depth", "chosen", "constant depth", "decaying"


def judge_replies(
    forms: ModelForms,
    settings: CalibrationSettings,
    outcome: Outcome,
    prompts: Sequence[Sequence[int]],
    deadline: float,
) -> Iterator[CalibrationProgress]:
    """Full depth's perplexity on replies that it and each schedule of interest wrote.

    Fills the outcome's `judged`, and `by_replies` of its verdict. Full depth is that of the form
    that everything is compared with. It writes and judges after the others have written.

    Args:
        prompts: token ids; the first ones are answered.
        deadline: by `time.monotonic`; the writers answer no further prompt after it.
    """
    assert outcome.chosen is not None
    writers, prompts = _writers(outcome), prompts[:MAX_PROMPTS]
    model = forms.take(outcome.chosen.candidate.quantization)
    written = yield from write_in_turn(model, writers, prompts, settings, deadline)
    if len(written) < len(prompts):
        outcome.cut.append(f"replies to {len(written)} of {len(prompts)} prompts were judged")
    model = forms.take(forms.reference)
    surprises = yield from surprises_of(model, prompts, written, settings)
    own_surprises, confidence = surprises[FULL_DEPTH], settings.confidence
    outcome.judged = {
        name: judge(each, own_surprises, confidence) for name, each in surprises.items()
    }
    if outcome.verdict is not None:
        rise = measure_rise(surprises[DECAYING], surprises[CONSTANT], confidence)
        outcome.verdict = replace(outcome.verdict, by_replies=rise)


def write_in_turn(
    model: LoadedModel,
    writers: Mapping[str, Schedule],
    prompts: Sequence[Sequence[int]],
    settings: CalibrationSettings,
    deadline: float,
) -> Generator[CalibrationProgress, None, list[dict[str, Document]]]:
    """The replies of all writers to each prompt, by the writer's name.

    After the deadline no further prompt is answered, once there are `MIN_PROMPTS`.
    """
    written: list[dict[str, Document]] = []
    for number, prompt in enumerate(prompts):
        # Either all writers answer a prompt or none.
        if number >= MIN_PROMPTS and time.monotonic() > deadline:
            break
        replies: dict[Schedule, Document] = {}  # two writers may be the same
        for name, schedule in writers.items():
            yield CalibrationProgress(f"reply {number + 1} of {len(prompts)}: {name}", 0.99)
            if schedule not in replies:
                seed = settings.seed + number
                replies[schedule] = write_reply(
                    model, prompt, schedule, settings.reply_tokens, seed
                )
        written.append({name: replies[schedule] for name, schedule in writers.items()})
    return written


def surprises_of(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    written: Sequence[Mapping[str, Document]],
    settings: CalibrationSettings,
) -> Generator[CalibrationProgress, None, dict[str, Losses]]:
    """Full depth's surprise at each writer's replies, and at its own to the same prompts."""
    full = DepthSchedule.full(model.num_layers)
    surprises: dict[str, Losses] = {name: [] for name in (FULL_DEPTH, *written[0])}
    for number, by_writer in enumerate(written):
        yield CalibrationProgress(f"reply {number + 1} of {len(written)}: {FULL_DEPTH}", 0.99)
        seed = settings.seed + number
        own = write_reply(model, prompts[number], full, settings.reply_tokens, seed)
        for name, reply in {FULL_DEPTH: own, **by_writer}.items():
            surprises[name].append(surprise(model, reply))
    return surprises


def _writers(outcome: Outcome) -> dict[str, Schedule]:
    chosen, verdict = outcome.chosen, outcome.verdict
    assert chosen is not None
    writers: dict[str, Schedule] = {CHOSEN: chosen.candidate.schedule}
    if verdict is not None:
        writers[CONSTANT] = verdict.static.candidate.schedule
        writers[DECAYING] = verdict.decaying.candidate.schedule
    return writers


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
