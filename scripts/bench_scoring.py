"""Compares the cost of scoring a schedule with a full-depth forward and with decoding.

    python scripts/bench_scoring.py                      # the built-in model
    python scripts/bench_scoring.py --model build/llama-3.2-1b --documents 2 --response 128

All arms score the same documents in one process, interleaved, in reverse order every other round.
Prints medians, and medians of the ratios to the full-depth forward of the same round. Token-by-
token decoding runs once, for one document.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

from d3cli.base.settings import BUILTIN
from d3cli.decode.loop import decode_step, prefill
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import Scorer, score


def token_by_token(model: LoadedModel, document: Document, schedule: DepthSchedule) -> float:
    """The log-probability of the response, one decode step a token."""
    cache = model.new_cache()
    cache.reserve(len(document))
    for chunk in prefill(model, cache, document.prompt_ids):
        logits = model.logits(chunk.hidden[-1])
    total = 0.0
    for step, token in enumerate(document.response_ids):
        if step:
            previous = document.response_ids[step - 1]
            logits = decode_step(model, cache, previous, schedule.dropped(step))
        total += float(logits.log_softmax(-1)[token])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--documents", type=int, default=8, help="in one batch")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--response", type=int, default=192, help="tokens")
    parser.add_argument("--alpha", type=float, default=0.99)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    model = load_model(args.model, dtype=args.dtype, device="cpu", threads=args.threads)
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randrange(5, 2000) for _ in range(count)]

    documents = [Document(ids(args.prompt), ids(args.response)) for _ in range(args.documents)]
    schedule, full = model.schedule(args.alpha), DepthSchedule.full(model.num_layers)
    begun = time.perf_counter()
    scorer = Scorer(model, documents)
    scorer.remember(full, [schedule.core_first - 1])
    made = time.perf_counter() - begun
    arms: dict[str, Callable[[], object]] = {
        "full depth": lambda: score(model, documents, full),
        "one pass": lambda: score(model, documents, schedule),
        "with reuse": lambda: scorer.score(schedule),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(args.rounds + 1):
        for name in list(arms)[:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            arms[name]()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - begun)
    tokens = args.documents * (args.prompt + args.response)
    print(
        f"{args.documents} documents of {args.prompt} + {args.response} tokens, alpha {args.alpha}"
    )
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times["full depth"], strict=True))
        median = statistics.median(seconds)
        print(
            f"{name:>12}: {median * 1e3:8.1f} ms  {ratio:.3f} x full  {tokens / median:,.0f} tok/s"
        )
    print(f"  to set up: {made * 1e3:8.1f} ms, once for all schedules")
    begun = time.perf_counter()
    slow = token_by_token(model, documents[0], schedule)
    seconds = time.perf_counter() - begun
    fast = float(scorer.score(schedule)[0].log_probs.sum())
    each = statistics.median(times["one pass"]) / args.documents
    print(f"token by token, one document: {seconds * 1e3:.1f} ms, {seconds / each:.0f} x one pass")
    print(f"log-probability of it: {slow:.4f} token by token, {fast:.4f} with reuse")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
