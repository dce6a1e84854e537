"""Measures what a decode step costs beside its products: norms, rotary angles, attention, Python.

    python scripts/bench_step.py --model DIRECTORY --context 16 128 1024
    python scripts/bench_step.py --threads 2 --quantization int4

Each step runs by blocks and by transformers' gated layers, whole and with every product replaced by
a stub that returns a tensor made before. What remains of a step with stubs is its overhead, which
includes reading the KV cache. With one thread the times are the thread's own, so that other load
matters less; else they are by the clock. Each figure is the least of many steps, which alternate.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from d3cli.base.settings import BUILTIN
from d3cli.decode.loop import prefill
from d3cli.kernels.int4_linear import FourBitLinear
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.model.kv_cache import KVCache
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel

ROUNDS, STEPS = 8, 20
BLOCKS, LAYERS = "blocks", "transformers' layers"


@contextmanager
def stubbed(model: LoadedModel) -> Iterator[None]:
    """Replaces every product by its last result."""
    kinds = (nn.Linear, EightBitLinear, FourBitLinear)
    linears: list[Any] = [m for m in model.causal_lm.modules() if isinstance(m, kinds)]
    for linear in linears:
        linear.forward = _stub(torch.randn(1, linear.out_features).to(model.causal_lm.dtype))
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _stub(result: Tensor) -> Callable[[Tensor], Tensor]:
    """A product of one row, ``[1, in]`` or ``[1, 1, in]``."""
    in_batch = result[None]
    return lambda states: result if states.ndim == 2 else in_batch


def least(arms: dict[str, LoadedModel], cache: KVCache, clock: Callable[[], float]) -> list[float]:
    """The least seconds that a step takes in each arm, at the cache's position."""
    position, best = cache.position, dict.fromkeys(arms, float("inf"))
    token = torch.tensor([[5]])
    for _ in range(ROUNDS):
        for name, model in arms.items():
            for _ in range(STEPS):
                began = clock()
                hidden = model.hidden_states(token, cache)
                model.logits(hidden[0, -1])
                best[name] = min(best[name], clock() - began)
                cache.crop(position)
    return list(best.values())


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, nargs="+", default=[16, 128, 1024])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model, dtype=args.dtype, quantization=args.quantization, device="cpu")
    torch.set_num_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    arms = {BLOCKS: model, LAYERS: replace(model, blocks=None)}
    print(f"{args.model}, {args.threads} threads; milliseconds a step, microseconds a layer")
    print(f"{'context':>8} {'arm':22} {'step':>8} {'no products':>12} {'a layer':>8}")
    for context in args.context:
        cache = model.new_cache()
        cache.reserve(context + 1)
        for _ in prefill(model, cache, [3 + i % 100 for i in range(context)]):
            pass
        whole = least(arms, cache, clock)
        with stubbed(model):
            bare = least(arms, cache, clock)
        for name, step, rest in zip(arms, whole, bare, strict=True):
            layer = rest / model.num_layers * 1e6
            print(f"{context:8} {name:22} {step * 1e3:8.2f} {rest * 1e3:12.2f} {layer:8.0f}")


if __name__ == "__main__":
    main()
