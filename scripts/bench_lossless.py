"""Measures lossless decoding beside plain decoding and transformers' own assisted generation.

    python scripts/bench_lossless.py MODEL                     # tasks of four kinds; forced drafts
    python scripts/bench_lossless.py MODEL --draft-model NAME  # also drafts by a smaller model
    python scripts/bench_lossless.py MODEL --quick             # a few minutes
    python scripts/bench_lossless.py                           # forced drafts alone

The first part writes replies to the tasks in texts/lossless_tasks.toml: d3 plain and lossless,
`generate`, `generate` with `prompt_lookup_num_tokens`, and with an assistant model. A round runs
all arms forward and then backward, so that other load affects all of them equally. A drafter is new
in each reply, so that it pays for what it learns. Times are of the decode steps alone. Gains are
over plain decoding of the same program in the same half round: their median over half rounds.

Tokens that differ are counted up to the first one of each reply, since the text is another one
afterwards. Beside each stands how far apart the two best logits are there, in the steps between
neighbouring bfloat16 numbers: up to `NEAR_TIE`, rounding decides between them.

The second part decodes a random shape with drafts that are right at a given rate (`Forced`). Its
embeddings are scaled up until it repeats its last token: the two best logits of a random model are
often so close that rounding decides, and after that no draft would be right. With --prompts,
replies of the shape as it is are compared, to count where rounding decides: d3's with drafts like
these, and those of `generate`.
"""

import argparse
import math
import statistics
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from d3cli.base.hardware import processor_name, system, versions
from d3cli.decode.agreement import common_prefix
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.draft.source import Draft, Offer, ReplyContext
from d3cli.decode.loop import SourceName
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.files.names import find_model
from d3cli.kernels.process import prepare_process
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.text.chat_template import encode_chat

sys.path.insert(0, str(Path(__file__).parent))
from bench_arms import plain_model
from bench_decode import made_checkpoint, words
from bench_report import table

TASKS = Path(__file__).parent / "texts" / "lossless_tasks.toml"
NEAR_TIE = 4  # steps of bfloat16
HF_LOOKUP = 10  # prompt_lookup_num_tokens, as transformers' documentation has it
RATES = (0.0, 0.3, 0.6, 0.9)
LOUD = 64  # times the embeddings of the random shape
PLAIN, HF_PLAIN = "d3 plain", "generate"
HF: Mapping[str, Mapping[str, Any]] = {
    HF_PLAIN: {},
    "generate, prompt lookup": {"prompt_lookup_num_tokens": HF_LOOKUP},
}


@dataclass(frozen=True)
class Written:
    """A reply: its tokens, and the seconds that each took after the first."""

    token_ids: list[int]
    token_s: float
    accepted: str = ""


@dataclass
class Arm:
    """One way to write a reply, and what it wrote in each half round."""

    name: str
    plain: str  # the arm that it is compared with
    write: Callable[[list[int]], Written]
    replies: list[Written] = field(default_factory=list)


class Forced:
    """Drafts the reply that is known, with each token wrong at a given rate."""

    name: SourceName = "lookup"
    cost = 0.0

    def __init__(self, prompt_tokens: int, reply: Sequence[int], rate: float) -> None:
        self._start, self._reply, self._rate = prompt_tokens, reply, rate
        self._chance = torch.Generator().manual_seed(0)

    def begin(self, reply: ReplyContext) -> None: ...

    def offer(self, reply: ReplyContext) -> Offer | None:
        return Offer(most=self._start + len(self._reply) - len(reply.token_ids))

    def draft(self, reply: ReplyContext, length: int) -> Draft:
        step = len(reply.token_ids) - self._start
        right = torch.rand(length, generator=self._chance) < self._rate
        known = self._reply[step : step + length]
        drafted = [id_ if ok else id_ ^ 1 for id_, ok in zip(known, right, strict=True)]
        return Draft(drafted, self.name)


class Stamps(BaseStreamer):
    """Records when `generate` yields tokens, and how many."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        self.counts.append(value.numel())

    def end(self) -> None: ...


def by_d3(
    model: LoadedModel, tokens: int, new_drafter: Callable[[], Drafter] | None = None
) -> Callable[[list[int]], Written]:
    def write(prompt_ids: list[int]) -> Written:
        reply = Engine(model).stream_ids(
            prompt_ids,
            schedule=DepthSchedule.full(model.num_layers),
            sampling=SamplingParams(),
            max_tokens=tokens,
            drafter=None if new_drafter is None else new_drafter(),
        )
        token_ids = [chunk.token_id for chunk in reply]
        lossless = reply.stats.lossless
        accepted = "" if lossless is None else f"{lossless.accepted} of {lossless.drafted}"
        return Written(token_ids, reply.stats.decode_s / max(1, len(token_ids) - 1), accepted)

    return write


def by_generate(plain: Any, ends: list[int], tokens: int, **how: Any) -> Callable[..., Written]:
    def write(prompt_ids: list[int]) -> Written:
        ids, stamps = torch.tensor([prompt_ids]), Stamps()
        output = plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            streamer=stamps,
            eos_token_id=ends or None,
            pad_token_id=0,
            **how,
        )
        # The streamer gets the prompt first, then the tokens of the prefill's pass.
        after = sum(stamps.counts[2:])
        seconds = (stamps.times[-1] - stamps.times[1]) / max(1, after)
        return Written(output[0, len(prompt_ids) :].tolist(), seconds)

    return write


def task_arms(asked: argparse.Namespace, form: str | None) -> tuple[LoadedModel, list[Arm]]:
    """All arms for the tasks; transformers' only for weights that are not quantized."""
    model = load_model(asked.model, dtype=asked.dtype, device="cpu", quantization=form)
    small = asked.draft_model and load_model(asked.draft_model, dtype=asked.dtype, device="cpu")
    tokens = asked.tokens
    arms = [Arm(PLAIN, PLAIN, by_d3(model, tokens))]
    for source in ("lookup", "auto"):
        new = lambda source=source: Drafter.for_model(model, source, draft_model=small or None)  # noqa: E731
        arms.append(Arm(f"d3 lossless, {source}", PLAIN, by_d3(model, tokens, new)))
    if form is None:
        plain = plain_model(find_model(asked.model), model.causal_lm.dtype)
        hf = dict(HF)
        if asked.draft_model:
            assistant = plain_model(find_model(asked.draft_model), model.causal_lm.dtype)
            hf["generate, assistant"] = {"assistant_model": assistant}
        ends = sorted(model.text.reply_ends())
        arms += [
            Arm(name, HF_PLAIN, by_generate(plain, ends, tokens, **how)) for name, how in hf.items()
        ]
    return model, arms


def run(arms: Sequence[Arm], prompt_ids: list[int], rounds: int) -> None:
    """Once untimed, then forward and backward."""
    for arm in arms:
        arm.replies = []
        arm.write(prompt_ids)
    for _ in range(rounds):
        for half in (arms, arms[::-1]):
            for arm in half:
                arm.replies.append(arm.write(prompt_ids))


def gain(arm: Arm, arms: Sequence[Arm]) -> float:
    plain = next(each for each in arms if each.name == arm.plain)
    pairs = zip(plain.replies, arm.replies, strict=True)
    return statistics.median(theirs.token_s / ours.token_s for theirs, ours in pairs)


def margin(model: LoadedModel, token_ids: Sequence[int]) -> float:
    """How far apart the two best logits after these tokens are, in steps of bfloat16."""
    hidden = model.hidden_states(torch.tensor([token_ids]))[0, -1]
    best, second = model.logits(hidden).topk(2).values.tolist()
    return float((best - second) / 2 ** (math.floor(math.log2(abs(best) or 1.0)) - 7))


@dataclass
class Differences:
    """Tokens compared with plain decoding, and the margins where they first differ."""

    compared: int = 0
    margins: list[float] = field(default_factory=list)

    def add(self, model: LoadedModel, prompt: list[int], ours: list[int], plain: list[int]) -> None:
        same = common_prefix(ours, plain)
        self.compared += min(same + 1, len(plain))
        if same < min(len(ours), len(plain)):
            self.margins.append(margin(model, [*prompt, *plain[:same]]))

    def row(self, name: str) -> tuple[str, ...]:
        ties = sum(each <= NEAR_TIE for each in self.margins)
        return (
            name,
            f"{self.compared:,}",
            f"{len(self.margins)}",
            f"{1e4 * len(self.margins) / max(1, self.compared):.1f}",
            f"{ties} of {len(self.margins)}",
            f"{max(self.margins, default=0):.1f}",
        )


def measure_tasks(asked: argparse.Namespace, form: str | None) -> Iterator[str]:
    """The tables of the tasks."""
    model, arms = task_arms(asked, form)
    tasks = tomllib.loads(TASKS.read_text())["task"]
    if asked.quick:
        tasks = list({task["kind"]: task for task in tasks}.values())
    speeds, differences = [], {arm.name: Differences() for arm in arms if arm.name != PLAIN}
    for task in tasks:
        message = {"role": "user", "content": task["prompt"].strip()}
        prompt_ids = encode_chat(model.tokenizer, [message], model.text.renderer)
        run(arms, prompt_ids, asked.rounds)
        for arm in arms:
            last = arm.replies[-1]
            speed = 1 / statistics.median(reply.token_s for reply in arm.replies)
            gained = f"{gain(arm, arms):.2f}"
            speeds.append((task["kind"], arm.name, f"{speed:.1f}", gained, last.accepted))
            if arm.name != PLAIN:
                # generate's own modes are compared with generate, and that with d3.
                against = PLAIN if arm.name == HF_PLAIN else arm.plain
                plain = next(each for each in arms if each.name == against).replies[-1]
                differences[arm.name].add(model, prompt_ids, last.token_ids, plain.token_ids)
        print(f"  {task['kind']}", file=sys.stderr)
    yield f"### {model.name}, {form or asked.dtype}: tasks\n"
    yield table(("task", "arm", "tokens/s", "× plain", "accepted"), speeds) + "\n"
    titles = ("arm", "tokens", "differ", "per 10,000", "near-ties", "largest margin")
    yield table(titles, [found.row(name) for name, found in differences.items()]) + "\n"


def measure_forced(asked: argparse.Namespace, form: str | None) -> str:
    """The table of drafts that are right at given rates."""
    name = str(made_checkpoint(asked.shape))
    model = load_model(name, dtype=asked.dtype, device="cpu", quantization=form)
    with torch.inference_mode():
        model.causal_lm.get_input_embeddings().weight.mul_(LOUD)
    random = torch.Generator().manual_seed(0)
    prompt_ids = torch.randint(100, 4000, (64,), generator=random).tolist()
    plain = by_d3(model, asked.tokens)
    known = plain(prompt_ids).token_ids
    arms = [Arm(PLAIN, PLAIN, plain)]
    for rate in RATES:
        new = lambda rate=rate: Drafter([Forced(len(prompt_ids), known, rate)])  # noqa: E731
        arms.append(Arm(f"{rate:.0%} right", PLAIN, by_d3(model, asked.tokens, new)))
    run(arms, prompt_ids, asked.rounds)
    rows = []
    for arm in arms:
        speed = 1 / statistics.median(reply.token_s for reply in arm.replies)
        same = common_prefix(arm.replies[-1].token_ids, known)
        gained, accepted = f"{gain(arm, arms):.2f}", arm.replies[-1].accepted
        rows.append((arm.name, f"{speed:.1f}", gained, accepted, f"{same} of {len(known)}"))
    titles = ("drafts", "tokens/s", "× plain", "accepted", "as plain")
    return f"### {asked.shape}, {form or asked.dtype}: forced drafts\n\n{table(titles, rows)}\n"


def generate_arms(asked: argparse.Namespace, form: str | None) -> list[Arm]:
    """`generate` on the random shape, without and with drafts; none for quantized weights."""
    if form is not None:
        return []
    plain = plain_model(find_model(str(made_checkpoint(asked.shape))), getattr(torch, asked.dtype))
    return [
        Arm(name, HF_PLAIN, by_generate(plain, [], asked.tokens, **how)) for name, how in HF.items()
    ]


def measure_differences(asked: argparse.Namespace, form: str | None) -> str:
    """The table of tokens that differ from plain decoding, on random weights as they are."""
    model = load_model(
        str(made_checkpoint(asked.shape)), dtype=asked.dtype, device="cpu", quantization=form
    )
    plain, theirs = by_d3(model, asked.tokens), generate_arms(asked, form)
    found: defaultdict[str, Differences] = defaultdict(Differences)
    for seed in range(asked.prompts):
        random = torch.Generator().manual_seed(seed)
        prompt_ids = torch.randint(100, 4000, (64,), generator=random).tolist()
        known = plain(prompt_ids).token_ids
        for rate in RATES[-2:]:
            drafter = Drafter([Forced(len(prompt_ids), known, rate)])
            ours = by_d3(model, asked.tokens, lambda drafter=drafter: drafter)(prompt_ids)
            found[f"{rate:.0%} right"].add(model, prompt_ids, ours.token_ids, known)
        against = known
        for arm in theirs:
            written = arm.write(prompt_ids).token_ids
            found[arm.name].add(model, prompt_ids, written, against)
            against = written if arm.name == HF_PLAIN else against
    rows = [differences.row(name) for name, differences in found.items()]
    titles = ("drafts", "tokens", "differ", "per 10,000", "near-ties", "largest margin")
    return f"### {asked.shape}, {form or asked.dtype}: differences\n\n{table(titles, rows)}\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "model", nargs="?", help="a directory, a GGUF file or a name, with a chat template"
    )
    parser.add_argument("--draft-model", help="a smaller model with the same tokenizer")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--forms", type=words, default=["none", "int4", "nested"])
    parser.add_argument("--shape", default="llama-3.2-1b", help='for forced drafts; "" for none')
    parser.add_argument("--prompts", type=int, default=0, help="count differences on the shape")
    parser.add_argument("--tokens", type=int, default=200, help="of a reply, at most")
    parser.add_argument("--rounds", type=int, default=3, help="0: count differences alone")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="one form, one round, short replies")
    asked = parser.parse_args()
    if asked.quick:
        asked.forms, asked.rounds, asked.tokens = asked.forms[:1], 1, min(asked.tokens, 48)
    return asked


def main() -> None:
    asked = arguments()
    prepare_process(asked.threads)
    used = versions()
    print(f"## {processor_name()}, {torch.get_num_threads()} threads\n")
    print(f"{system()}; " + ", ".join(f"{name} {used[name]}" for name in used if used[name]) + "\n")
    # Each table as soon as it is known, since all take an hour.
    for form in (None if each == "none" else each for each in asked.forms):
        if asked.model and asked.rounds:
            for each in measure_tasks(asked, form):
                print(each, flush=True)
        if asked.shape and asked.rounds:
            print(measure_forced(asked, form), flush=True)
        if asked.shape and asked.prompts:
            print(measure_differences(asked, form), flush=True)


if __name__ == "__main__":
    main()
