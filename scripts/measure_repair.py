"""Measures what keeping an approximate KV cache between turns costs, against repairing it.

    python scripts/measure_repair.py --model build/model --texts docs/*.md README.md

Each text is cut into a prompt, a reply, a next turn and the reply to it. The first reply loses its
low planes (the weights are nested) in the order of its prompt, by --alpha. The rest is read over a
cache that was kept and over one that was repaired. Prints the change of perplexity with its
standard error over texts, and the time of a repair.
"""

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.files.names import find_model
from d3cli.model.influence import InfluenceMeter
from d3cli.model.influence_table import mean_influence
from d3cli.model.kv_cache import KVCache
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel

PROMPT, REPLY, TURN = 96, 128, 96  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--alpha", type=float, default=0.99)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    model = load_model(
        find_model(args.model), quantization="nested", device="cpu", threads=args.threads
    )
    changes: dict[str, list[float]] = {}
    seconds = []
    for path in args.texts:
        ids = model.tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
        if len(ids) >= PROMPT + REPLY + 2 * TURN:
            seconds.append(measure(model, ids, args.alpha, changes))
    for name, values in changes.items():
        rise = 100 * (math.exp(statistics.fmean(values)) - 1)
        error = 100 * statistics.stdev(values) / math.sqrt(len(values))
        print(f"{name}: perplexity {rise:+.2f}% (± {error:.2f}), {len(values)} texts")
    print(f"a repair: {1000 * statistics.median(seconds) / REPLY:.2f} ms a token")


def measure(
    model: LoadedModel, ids: list[int], alpha: float, changes: dict[str, list[float]]
) -> float:
    """Adds what one text's later tokens lose over a kept cache; the seconds of a repair."""
    prompt, reply = ids[:PROMPT], ids[PROMPT : PROMPT + REPLY]
    turn, answer = (ids[PROMPT + REPLY + at * TURN :][:TURN] for at in (0, 1))
    schedule = ordered(model, prompt, alpha)
    kept, repaired = model.new_cache(), model.new_cache()
    for cache in (kept, repaired):
        read(model, cache, prompt)
    read(model, kept, reply[:-1], limits(schedule, REPLY))
    began = time.perf_counter()
    read(model, repaired, reply[:-1])
    took = time.perf_counter() - began
    losses: list[list[Tensor]] = []
    for cache in (kept, repaired):
        states = read(model, cache, [reply[-1], *turn])
        later = read(model, cache, answer[:-1], limits(schedule, TURN))
        losses.append(
            [
                loss(model, states[:-1], turn),
                loss(model, torch.cat([states[-1:], later]), answer),
            ]
        )
    for name, ours, theirs in zip(("next turn", "its reply, decayed"), *losses, strict=True):
        changes.setdefault(name, []).append(float((ours - theirs).mean()))
    return took


def ordered(model: LoadedModel, prompt: list[int], alpha: float) -> DepthSchedule:
    """The schedule in the order of a prompt."""
    schedule = model.schedule(alpha, units="plane")
    if not isinstance(schedule, PromptSchedule):
        raise SystemExit(f"{model.name} has a stored order: give a model without one")
    meter = InfluenceMeter(model.gate, "plane")
    model.hidden_states(torch.tensor([prompt]), meter=meter)
    return schedule.ordered(mean_influence(meter.units, meter.rows()[0]))


def limits(schedule: DepthSchedule, tokens: int) -> dict[str, int]:
    """On how many of the positions that predict tokens 1, 2, … of a reply each unit runs."""
    return schedule.prefix_lengths(0, tokens)


def read(
    model: LoadedModel, cache: KVCache, ids: list[int], below: dict[str, int] | None = None
) -> Tensor:
    """Reads tokens into a cache; their final hidden states ``[S, H]``."""
    hidden = model.hidden_states(torch.tensor([ids]), cache, limits=below or {})
    cache.commit(len(ids), full_depth=below is None)
    return hidden[0]


def loss(model: LoadedModel, hidden: Tensor, ids: list[int]) -> Tensor:
    """Nats of each token, ``[S]``, from the states that predict them."""
    log_probs = model.logits(hidden).log_softmax(-1)
    return -log_probs.gather(1, torch.tensor(ids)[:, None])[:, 0].double()


if __name__ == "__main__":
    main()
