"""Measures what an order from the prompt costs in time, and what it saves in quality.

    python scripts/bench_prompt_order.py                                    # the built-in model
    python scripts/bench_prompt_order.py --model build/model --prompt 64 512
    python scripts/bench_prompt_order.py --model build/model --texts a.txt b.txt
    python scripts/bench_prompt_order.py --model build/model --quantization nested --texts a.txt

Time: the prefill of a random prompt with and without measuring the units' influence, in turn and in
reverse order every other round, in one process. Prints the median of both times, and the median and
quartiles of the rounds' ratios.

Quality (with --texts): perplexity of the second half of each text's first tokens at a constant
depth, in the order of the first half's influence, against full depth. Each half is --half tokens
long. Whole layers are also dropped shallow-first, and sublayers by influence alone. If the weights
are nested, only low planes are dropped, in some other orders as well.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from d3cli.base.settings import BUILTIN
from d3cli.decode.loop import prefill
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.schedule import static_schedule
from d3cli.depth.units import UnitKind
from d3cli.files.names import find_model
from d3cli.model.influence import InfluenceMeter
from d3cli.model.influence_table import InfluenceHistory, InfluenceTable, mean_influence
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import Scorer

SAVED = (0.02, 0.05, 0.075, 0.1, 0.2)  # shares of the bytes
SAVED_LOW = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the bytes of all low planes
EVERY = 8  # positions at which planes are compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", choices=["int8", "int4", "nested"])
    parser.add_argument("--prompt", type=int, nargs="+", default=[64, 512], help="tokens")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--texts", type=Path, nargs="+", help="files; measures quality instead")
    parser.add_argument("--half", type=int, default=128, help="tokens")
    args = parser.parse_args()
    model = load_model(
        find_model(args.model),
        dtype=args.dtype,
        quantization=args.quantization,
        device="cpu",
        threads=args.threads,
    )
    if args.texts:
        measure_quality(model, args.texts, args.half)
        return
    for length in args.prompt:
        for kind in ("layer", "sublayer"):
            measure_time(model, length, kind, args.rounds)


def measure_time(model: LoadedModel, length: int, kind: UnitKind, rounds: int) -> None:
    """Prints the times of a prefill with and without the measurement."""
    rng = random.Random(0)
    prompt = [rng.randrange(5, 2000) for _ in range(length)]

    def seconds(*, measure: bool) -> float:
        table = InfluenceTable(model.num_layers, InfluenceHistory())
        table.measure(kind)
        cache = model.new_cache()
        began = time.perf_counter()
        for _ in prefill(model, cache, prompt, influence=table if measure else None):
            pass
        if measure:
            table.mean(length)
        return time.perf_counter() - began

    times: dict[bool, list[float]] = {False: [], True: []}
    ratios = []
    for measure in (False, True):
        seconds(measure=measure)
    for number in range(rounds):
        pair = {}
        for measure in (False, True) if number % 2 else (True, False):
            pair[measure] = seconds(measure=measure)
            times[measure].append(pair[measure])
        ratios.append(pair[True] / pair[False])
    plain, measured = (1000 * statistics.median(times[one]) for one in (False, True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{length:5,} tokens, {kind + 's':9}: {plain:8.2f} ms, measured {measured:8.2f} ms, "
        f"ratio {middle:.4f} ({low:.4f} to {high:.4f})"
    )


def measure_quality(model: LoadedModel, texts: list[Path], half: int) -> None:
    """Prints the perplexity against full depth, per order and share of bytes saved."""
    documents = []
    for path in texts:
        ids = model.tokenizer(path.read_text(), add_special_tokens=False)["input_ids"][: 2 * half]
        if len(ids) == 2 * half:
            documents.append(Document(ids[:half], ids[half:]))
    print(f"{len(documents)} texts of {half} + {half} tokens")
    weights = model.weight_bytes
    total, shares = weights.total, SAVED
    if weights.is_nested:
        total, shares = sum(weights.saved(weights.unit_names("plane"))), SAVED_LOW
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for document in documents:
        scorer = Scorer(model, [document])
        full = _loss(scorer, [])
        for name, order in orders(model, document):
            for share in shares:
                dropped = _saving(model, order, share * total)
                saved = sum(weights.saved(dropped)) / weights.total
                losses = found.setdefault((name, share), [])
                losses.append((_loss(scorer, dropped) - full, saved))
    for (name, _), losses in sorted(found.items()):
        rise = math.exp(statistics.fmean(loss for loss, _ in losses)) - 1
        ratio = 1 / (1 - statistics.fmean(saved for _, saved in losses))
        print(f"{name:32} byte ratio {ratio:.3f}: perplexity {100 * rise:+.1f}%")


def orders(model: LoadedModel, document: Document) -> Iterator[tuple[str, list[str]]]:
    """Names and skip orders for a document."""
    if model.weight_bytes.is_nested:
        yield from _plane_orders(model, document)
        return
    for kind in ("layer", "sublayer"):
        schedule = model.schedule(0.5, units=kind)
        if not isinstance(schedule, PromptSchedule):
            raise SystemExit(f"{model.name} has a stored order: give a model without one")
        meter = InfluenceMeter(model.gate, kind)
        model.hidden_states(torch.tensor([document.prompt_ids]), meter=meter)
        influence = mean_influence(meter.units, meter.rows()[0])
        yield f"{kind}s by the prompt", list(schedule.ordered(influence).skip_order)
        if kind == "layer":
            yield "layers, shallow-first", list(schedule.units)
        else:
            by_influence = sorted(schedule.units, key=influence.__getitem__)
            yield "sublayers, by influence alone", by_influence


def _plane_orders(model: LoadedModel, document: Document) -> Iterator[tuple[str, list[str]]]:
    """Orders of low planes."""
    planes = list(model.weight_bytes.unit_names("plane"))
    weight = dict(zip(planes, model.weight_bytes.weights(planes), strict=True))
    ids = torch.tensor([document.prompt_ids])
    meter = InfluenceMeter(model.gate, "plane")
    model.hidden_states(ids, meter=meter)
    influence, error = mean_influence(meter.units, meter.rows()[0]), _errors(model, ids)
    both = {plane: influence[plane] * error[plane] for plane in planes}
    for name, values in (("influence", influence), ("own error", error), ("both", both)):
        yield f"by {name} per weight", sorted(planes, key=lambda one: values[one] / weight[one])
        yield f"by {name} alone", sorted(planes, key=values.__getitem__)
    yield "the model's order", planes
    yield "the last first", planes[::-1]


def _errors(model: LoadedModel, ids: torch.Tensor) -> dict[str, float]:
    """What each low plane adds, as a share of both planes' squared norm, summed over its linears.

    A mean over some positions of a text.
    """
    errors = dict.fromkeys(model.gate.low_planes, 0.0)

    def measure(linear: Any, args: Any, unit: str) -> None:
        rows = args[0].reshape(-1, linear.in_features)[EVERY - 1 :: EVERY]
        high, low = linear.high(rows).float(), linear.low(rows).float()
        share = low.square().sum(-1) / (high + low).square().sum(-1)
        errors[unit] += float(share.mean())

    hooks = [
        linear.register_forward_hook(lambda module, args, _, unit=unit: measure(module, args, unit))
        for unit, linears in model.gate.low_planes.items()
        for linear in linears
    ]
    model.hidden_states(ids)
    for hook in hooks:
        hook.remove()
    return errors


def _saving(model: LoadedModel, order: list[str], size: float) -> list[str]:
    """The shortest beginning of an order that saves so many bytes."""
    dropped: list[str] = []
    while len(dropped) < len(order) and sum(model.weight_bytes.saved(dropped)) < size:
        dropped.append(order[len(dropped)])
    return dropped


def _loss(scorer: Scorer, dropped: list[str]) -> float:
    schedule = static_schedule(scorer.model.weight_bytes, dropped)
    return -float(scorer.score(schedule)[0].log_probs.mean())


if __name__ == "__main__":
    main()
