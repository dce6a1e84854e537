"""Measures replies that are written together against the same replies one by one.

    python scripts/bench_batch.py MODEL
    python scripts/bench_batch.py MODEL --quantization nested --alpha 0.99 --sizes 1 2 4 8

Each arm writes all replies, prefills included. Its schedule is full depth, decay in one order that
all rows share, as a calibration gives it, or decay in each prompt's own order. Replies do not end
by themselves: they have from half to three halves of --tokens, evenly spread, so that rows end at
different steps as in real use. A round runs all arms forward and then backward, so that other load
affects all of them equally. Prints the tokens a second and the gain over one by one of the same
schedule in the same half round: medians over half rounds, with the least and the largest gain.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from d3cli.base.hardware import processor_name
from d3cli.decode.batch import write_together
from d3cli.decode.reply import Reply
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.files.names import find_model
from d3cli.kernels.process import prepare_process
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.text.chat_template import encode_chat

sys.path.insert(0, str(Path(__file__).parent))
from bench_report import table

THINGS = ("fox", "river", "clock", "baker", "storm", "garden", "lamp", "whale")
PROMPTS = (
    "Tell me a story about a {}, in which somebody learns a thing that he did not know before.",
    "Write a poem about a {} for a child who cannot sleep, in simple words and short lines.",
)


@dataclass
class Arm:
    """A schedule and a number of rows, and the seconds of each half round."""

    name: str
    schedule: Schedule
    size: int
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization")
    parser.add_argument("--alpha", type=float, default=0.99)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=48, help="of a reply, on average")
    parser.add_argument("--rounds", type=int, default=1, help="each runs all arms twice")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    if asked.sizes[0] != 1:
        parser.error("--sizes begins with 1, which the others are compared with")
    prepare_process(asked.threads)
    model = load_model(
        find_model(asked.model),
        dtype=asked.dtype,
        quantization=asked.quantization,
        device="cpu",
        threads=asked.threads,
    )
    prompts = [
        encode_chat(
            model.tokenizer,
            [{"role": "user", "content": text.format(thing)}],
            model.text.renderer,
        )
        for text in PROMPTS
        for thing in THINGS
    ]
    arms = [
        Arm(name, schedule, size)
        for name, schedule in schedules(model, asked.alpha, prompts[0])
        for size in asked.sizes
    ]
    for round_ in range(asked.rounds + 1):  # the first one warms up
        for arm in [*arms, *reversed(arms)] if round_ else arms:
            taken = seconds(model, arm, prompts, asked.tokens)
            if round_:
                arm.seconds.append(taken)
    print(f"{model.name}, {model.origin.quantization or model.dtype}, on {processor_name()}\n")
    total = sum(lengths(len(prompts), asked.tokens))
    print(table(["schedule", "at a time", "tokens/s", "× one by one"], list(lines(arms, total))))


def schedules(
    model: LoadedModel, alpha: float, prompt_ids: list[int]
) -> Iterator[tuple[str, Schedule]]:
    """The schedules that are measured; the shared order is that of one prompt."""
    yield "full depth", DepthSchedule.full(model.num_layers)
    own = model.schedule(alpha)
    if not isinstance(own, PromptSchedule):
        yield f"alpha {alpha:g}, stored order", own
        return
    reply = start(Engine(model), prompt_ids, own, 1)
    list(reply)
    yield f"alpha {alpha:g}, one order", reply.schedule
    yield f"alpha {alpha:g}, each prompt's order", own


def seconds(model: LoadedModel, arm: Arm, prompts: list[list[int]], tokens: int) -> float:
    """Writes the replies to all prompts."""
    engines = [Engine(model) for _ in prompts]
    model.influence.forget()
    began = time.perf_counter()
    replies = (
        start(engine, prompt_ids, arm.schedule, length)
        for engine, prompt_ids, length in zip(
            engines, prompts, lengths(len(prompts), tokens), strict=True
        )
    )
    for _ in write_together(replies, arm.size):
        pass
    return time.perf_counter() - began


def start(engine: Engine, prompt_ids: list[int], schedule: Schedule, length: int) -> Reply:
    """A greedy reply that only its length ends."""
    return engine.stream_ids(
        prompt_ids, schedule=schedule, sampling=SamplingParams(), max_tokens=length, ends=()
    )


def lengths(count: int, tokens: int) -> list[int]:
    """From half to three halves of `tokens`, evenly spread, neighbours far apart."""
    step = 7  # shares no factor with 16, so that each length comes once
    return [tokens // 2 + tokens * (step * row % count) // (count - 1) for row in range(count)]


def lines(arms: list[Arm], total: int) -> Iterator[list[str]]:
    for arm in arms:
        alone = next(one for one in arms if one.name == arm.name and one.size == 1)
        gains = [one / own for one, own in zip(alone.seconds, arm.seconds, strict=True)]
        rate = total / statistics.median(arm.seconds)
        spread = f"{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
        yield [arm.name, str(arm.size), f"{rate:.1f}", "1" if arm.size == 1 else spread]


if __name__ == "__main__":
    main()
