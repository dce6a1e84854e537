"""Measures what D³ costs and saves on a real model: the tables of docs/real-model.md.

    python scripts/measure_real_model.py                 # perplexity by order and by kind of unit
    python scripts/measure_real_model.py --text own      # the same on the model's own replies
    python scripts/measure_real_model.py --needed        # the depth that each token needs
    python scripts/measure_real_model.py --calibrate     # what d3 calibrate finds at 1, 2, 5, 10%
    python scripts/measure_real_model.py --speed         # tokens per second; on an idle machine

MODEL is the one that scripts/fetch_real_model.py fetches, unless another is named. Text is what d3
calibrate uses: pairs that were written for this project, or the model's own replies to their
prompts, sampled at temperature 1. Some documents rank the units and others are scored. Each table
is printed row by row. --calibrate keeps its results under --save, where --speed finds them.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fetch_real_model import model_path

from d3cli.calibrate.clock import SearchClock
from d3cli.calibrate.evaluator import Evaluator
from d3cli.calibrate.influence import measure_influence, order_by_influence
from d3cli.calibrate.order import GreedyOrder, units_of
from d3cli.calibrate.own_replies import self_replies
from d3cli.calibrate.texts import builtin_samples, encode_samples
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.calibration_record import Calibration
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import UnitKind
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.model.origin import find_calibration
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Losses, measure_drop
from d3cli.scoring.one_pass import Scorer
from d3cli.text.chat_template import encode_chat

KINDS: tuple[UnitKind, ...] = ("layer", "sublayer")
DROPPED = (1, 2, 3, 5, 8)
ORDERS = ("shallow", "influence", "greedy", "prompt")
TARGETS = ("1%", "2%", "5%", "10%")
QUESTION = "Explain how a bicycle stays upright, and what a rider does about it."


def documents_of(model: LoadedModel, args: argparse.Namespace) -> tuple[list[Document], ...]:
    """The documents that rank units, and those that are scored."""
    documents = encode_samples(model, builtin_samples(model))
    random.Random(args.seed).shuffle(documents)
    documents = documents[: args.ranking + args.documents]
    if args.text == "own":
        documents = list(self_replies(model, documents, args.tokens, args.seed))
    short = [Document(d.prompt_ids, d.response_ids[: args.tokens]) for d in documents]
    return short[: args.ranking], short[args.ranking :]


def evaluator_of(model: LoadedModel, documents: Sequence[Document]) -> Evaluator:
    return Evaluator(model, documents, [len(documents)], SearchClock(float("inf")))


def shallow_first(model: LoadedModel, kind: UnitKind) -> list[str]:
    """From the first flex layer on, with a quarter of the layers as core at each end."""
    quarter = -(-model.num_layers // 4)
    layers = range(quarter, model.num_layers - quarter)
    if kind == "layer":
        return [str(layer) for layer in layers]
    return [f"{layer}.{part}" for layer in layers for part in ("attn", "mlp")]


def fixed_order(
    model: LoadedModel, kind: UnitKind, name: str, ranking: Sequence[Document]
) -> list[str]:
    """The first units of an order that is the same for every prompt."""
    if name == "shallow":
        return shallow_first(model, kind)[: DROPPED[-1]]
    influence = measure_influence(model, ranking, units_of(model, kind))
    order = order_by_influence(model, influence)
    if name == "greedy":
        greedy = GreedyOrder(
            model, evaluator_of(model, ranking), len(ranking), order, max_loss=float("inf")
        )
        for _ in greedy:
            if len(greedy.order) == DROPPED[-1]:
                break
        order = greedy.order
    return order[: DROPPED[-1]]


def losses_by_fixed_order(
    model: LoadedModel, order: Sequence[str], documents: Sequence[Document]
) -> Iterator[tuple[Losses, float]]:
    """For each number of units dropped: the losses, and the bytes saved by a decode step."""
    evaluator = evaluator_of(model, documents)
    schedules = [static_schedule(model.weight_bytes, order[:count]) for count in DROPPED]
    evaluator.share_first_layers(schedules)
    for schedule in schedules:
        yield evaluator.losses(schedule, len(documents)), saved_by(model, schedule)


def losses_by_prompt(
    model: LoadedModel, kind: UnitKind, documents: Sequence[Document]
) -> Iterator[tuple[Losses, float]]:
    """As `losses_by_fixed_order`, each document in the order that its own prompt decides."""
    asked = model.schedule(0.99, units=kind)
    assert isinstance(asked, PromptSchedule)
    losses: list[Losses] = [[] for _ in DROPPED]
    saved = [0.0] * len(DROPPED)
    for document in documents:
        scorer = Scorer(model, [document], kind)
        order = scorer.ordered(asked).skip_order
        full = scorer.score(DepthSchedule.full(model.num_layers))[0].log_probs.numpy()
        for number, count in enumerate(DROPPED):
            schedule = static_schedule(model.weight_bytes, order[:count])
            ours = scorer.score(schedule)[0].log_probs.numpy()
            losses[number].append(full - ours)
            saved[number] += saved_by(model, schedule) / len(documents)
    yield from zip(losses, saved, strict=True)


def saved_by(model: LoadedModel, schedule: DepthSchedule) -> float:
    """Bytes that a decode step at constant depth does not read."""
    return sum(model.weight_bytes.saved(schedule.skip_order))


def quality(args: argparse.Namespace) -> None:
    """Prints the drop at constant depth for each kind of unit, order and number of units."""
    model = load_model(args.model, dtype=args.dtype, threads=args.threads)
    ranking, documents = documents_of(model, args)
    tokens = sum(len(document.response_ids) for document in documents)
    print(f"{len(documents)} documents, {tokens:,} tokens; {len(ranking)} others rank the units")
    print(f"| unit | order | {' | '.join(map(str, DROPPED))} | dropped first |")
    total = model.weight_bytes.total
    for kind in args.kinds:
        for name in args.orders:
            if name == "prompt":
                order, found = [], losses_by_prompt(model, kind, documents)
            else:
                order = fixed_order(model, kind, name, ranking)
                found = losses_by_fixed_order(model, order, documents)
            cells = []
            for losses, saved in found:
                drop = measure_drop(losses, confidence=0.95)
                cells.append(
                    f"{drop.value:+.1%} ({drop.low:+.1%} to {drop.high:+.1%}), "
                    f"{total / (total - saved):.3f}"
                )
            print(f"| {kind} | {name} | {' | '.join(cells)} | {' '.join(order)} |", flush=True)


def needed(args: argparse.Namespace) -> None:
    """Prints what d3 profile says of the depth that tokens need, at full depth."""
    args.save.mkdir(parents=True, exist_ok=True)
    prompts = args.save / "prompts.jsonl"
    model = load_model(args.model, threads=args.threads)
    samples = [sample for sample in builtin_samples(model) if len(sample.messages) == 1]
    random.Random(args.seed).shuffle(samples)
    rows = [{"prompt": sample.messages[0]["content"]} for sample in samples[: args.documents]]
    prompts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ("--alpha", "off", "--needed", "--max-tokens", str(args.tokens))
    d3(args, "profile", *options, "--input", str(prompts))


def calibrate(args: argparse.Namespace) -> None:
    """Runs d3 calibrate at each target, and prints what it finds."""
    print("| target | s | found | on unseen text | bytes, net of repair |")
    for target in args.targets:
        home = args.save / target
        options = ["--target-drop", target, "--max-time", args.max_time, "--json"]
        if args.short_text:
            options += ["--data", str(short_text(args)), "--documents", str(2 * args.documents)]
        text = d3(args, "calibrate", *options, home=home, capture=True)
        (home / "calibration.json").write_text(text, encoding="utf-8")
        print(f"| {target} | {calibration_row(json.loads(text))} |", flush=True)


def short_text(args: argparse.Namespace) -> Path:
    """The pairs with their responses cut, for a machine with little time."""
    model = load_model(args.model, threads=args.threads)
    args.save.mkdir(parents=True, exist_ok=True)
    path: Path = args.save / "pairs.jsonl"
    rows = []
    for sample in builtin_samples(model):
        ids = model.tokenizer(sample.response, add_special_tokens=False)["input_ids"]
        last = {"role": "assistant", "content": model.tokenizer.decode(ids[: args.tokens])}
        rows.append({"messages": [*sample.messages, last]})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def calibration_row(found: dict[str, Any]) -> str:
    schedule, unseen, nearest = found["schedule"], found["unseen"], found["nearest"]
    seconds = f"{found['seconds']:.0f}"
    if schedule is not None:
        low, high = unseen["drop_interval"]
        return (
            f"{seconds} | {words(schedule)} | {unseen['drop']:+.2%} ({low:+.2%} to {high:+.2%}) | "
            f"{unseen['byte_ratio']:.3f}, {unseen['byte_ratio_net']:.3f}"
        )
    if nearest is None:
        return f"{seconds} | nothing | | "
    return (
        f"{seconds} | nothing; nearest: {words(nearest['schedule'])} | {nearest['drop']:+.2%} | "
        f"{nearest['byte_ratio_net']:.3f}"
    )


def words(schedule: dict[str, Any]) -> str:
    order = schedule.get("skip_order") or [f"the order of each prompt ({schedule.get('order')})"]
    return f"alpha {schedule['alpha']:.5g} from {schedule['start']}: {' '.join(order)}"


def d3(args: argparse.Namespace, command: str, *options: str, **run: Any) -> str:
    """Runs d3 with a home of its own; returns its stdout where that is captured."""
    home, capture = run.get("home", args.save), run.get("capture", False)
    home.mkdir(parents=True, exist_ok=True)
    threads = ("--threads", str(args.threads)) if args.threads else ()
    done = subprocess.run(
        [sys.executable, "-m", "d3cli", command, args.model, *threads, *options],
        env=os.environ | {"D3_HOME": str(home)},
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)
    return done.stdout or ""


def speed(args: argparse.Namespace) -> None:
    """Prints tokens per second: replies of all rows in turn, so that other load affects all."""
    rows = list(speed_rows(args))
    rates: list[list[float]] = [[] for _ in rows]
    bytes_read = [0.0] * len(rows)
    for round_ in range(args.rounds + 1):  # the first one warms up
        for number in range(len(rows)) if round_ % 2 else reversed(range(len(rows))):
            _, model, schedule = rows[number]
            rate, bytes_read[number] = one_reply(model, schedule, args.reply_tokens)
            if round_:
                rates[number].append(rate)
    print(f"replies of {args.reply_tokens} tokens, {args.rounds} rounds")
    print("| | tokens/s | over full depth | bytes |")
    for (name, _, _), rate, read in zip(rows, rates, bytes_read, strict=True):
        ratios = [ours / full for ours, full in zip(rate, rates[0], strict=True)]
        print(
            f"| {name} | {statistics.median(rate):.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {bytes_read[0] / read:.2f} |"
        )


def speed_rows(args: argparse.Namespace) -> Iterator[tuple[str, LoadedModel, Schedule]]:
    """Names, models and schedules; the first one is full depth."""
    model = load_model(args.model, dtype=args.dtype, threads=args.threads)
    yield "full depth", model, DepthSchedule.full(model.num_layers)
    for target in TARGETS:
        os.environ["D3_HOME"] = str(args.save / target)
        assert model.origin.key is not None
        found = find_calibration(model.origin.key, model.check_schedule)
        calibrated = replace(model, origin=replace(model.origin, calibration=found))
        if isinstance(found, Calibration):
            yield f"calibrated at {target}", model, calibrated.schedule()
    for kind in KINDS:
        yield f"alpha 0.99, {kind}s by the prompt", model, model.schedule(0.99, units=kind)
    small = load_model(args.model, quantization="bnb-4bit", threads=args.threads)
    yield "bnb-4bit, full depth", small, DepthSchedule.full(small.num_layers)


def one_reply(model: LoadedModel, schedule: Schedule, tokens: int) -> tuple[float, float]:
    """Tokens per second after the first one, and the bytes of weights that a step read."""
    prompt = encode_chat(
        model.tokenizer, [{"role": "user", "content": QUESTION}], model.text.renderer
    )
    reply = Engine(model).stream_ids(
        prompt, schedule=schedule, sampling=SamplingParams(), max_tokens=tokens, ends=()
    )
    for _ in reply:
        pass
    steps = reply.tokens[1:]
    rate = reply.stats.tokens_per_second
    assert rate is not None
    return rate, sum(token.bytes_read for token in steps) / len(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=str(model_path()), metavar="MODEL")
    what = parser.add_mutually_exclusive_group()
    for other in (needed, calibrate, speed):
        what.add_argument(
            f"--{other.__name__}",
            action="store_const",
            const=other,
            dest="measure",
            default=quality,
            help=other.__doc__,
        )
    parser.add_argument("--text", choices=("pairs", "own"), default="pairs")
    parser.add_argument("--documents", type=int, default=64, help="that are scored, or profiled")
    parser.add_argument("--ranking", type=int, default=16, help="documents that rank units")
    parser.add_argument("--tokens", type=int, default=128, help="scored of each document")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--max-time", default="10m", help="of each calibration")
    parser.add_argument("--short-text", action="store_true", help="calibrate on --tokens of each")
    parser.add_argument("--reply-tokens", type=int, default=256, help="of each timed reply")
    parser.add_argument("--rounds", type=int, default=5, help="of timed replies")
    parser.add_argument("--save", type=Path, default=Path("build/real-model"))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    main()
