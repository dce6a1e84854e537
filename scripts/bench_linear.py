"""Finds which of torch's kernels multiplies one token fastest on this processor.

    python scripts/bench_linear.py [--threads 2] [--shape llama-3.2-1b]

Each kernel cycles through several matrices of the same shape, so that none stays in a cache.
Kernels are interleaved in alternating order. Prints median milliseconds, and bytes per second of
the bfloat16 weights that one product stands for; int8 reads half of them.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from shapes import SHAPES
from torch import Tensor

from d3cli.kernels.products import ROWS

MOST_BYTES, MOST_COPIES = 600 << 20, 16


def kernels(weight: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to multiply ``[1, in]`` by a bfloat16 weight ``[out, in]``."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    scale = weight.float().abs().amax(dim=1) / 127
    eight_bits = (weight.float() / scale[:, None]).round().to(torch.int8)
    scale = scale.bfloat16()
    return {
        "F.linear": lambda x: torch.nn.functional.linear(x, weight),
        "torch.mv": lambda x: torch.mv(weight, x[0]),
        "oneDNN, packed": lambda x: torch.ops.mkldnn._linear_pointwise(
            x, packed, None, "none", [], ""
        ),
        f"the same, {ROWS} rows": lambda x: torch.ops.mkldnn._linear_pointwise(
            x.expand(ROWS, -1), packed, None, "none", [], ""
        )[:1],
        "int8 weights": lambda x: torch._weight_int8pack_mm(x, eight_bits, scale),
    }


@torch.inference_mode()
def measure(out_features: int, in_features: int, rounds: int) -> dict[str, float]:
    """Median seconds of one product, by kernel."""
    size = 2 * out_features * in_features
    copies = max(1, min(MOST_COPIES, MOST_BYTES // size))
    weights = [torch.randn(out_features, in_features).bfloat16() for _ in range(copies)]
    each = [kernels(weight) for weight in weights]
    x = torch.randn(1, in_features).bfloat16()
    found: dict[str, list[float]] = {name: [] for name in each[0]}
    for number in range(rounds + 1):
        for name in sorted(found, reverse=bool(number % 2)):
            began = time.perf_counter()
            for one in each:
                one[name](x)
            if number:  # the first round warms up
                found[name].append((time.perf_counter() - began) / copies)
    return {name: median(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    config = SHAPES[asked.shape]
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    shapes = {
        "q, o": (config.num_attention_heads * head_dim, hidden),
        "k, v": (config.num_key_value_heads * head_dim, hidden),
        "gate, up": (inner, hidden),
        "down": (hidden, inner),
        "LM head": (config.vocab_size, hidden),
    }
    print(f"{asked.shape}, {torch.get_num_threads()} threads; milliseconds and GB/s of bfloat16")
    for name, (out_features, in_features) in shapes.items():
        cells = [
            f"{kernel} {1000 * seconds:.3f} ({2 * out_features * in_features / seconds / 1e9:.1f})"
            for kernel, seconds in measure(out_features, in_features, asked.rounds).items()
        ]
        print(f"{name:9} {out_features:6} x {in_features:5}   " + "   ".join(cells))


if __name__ == "__main__":
    main()
