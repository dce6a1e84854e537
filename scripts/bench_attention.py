"""One token's attention: transformers' own call on a CPU beside the grouped one.

    python scripts/bench_attention.py [--threads 2] [--shape llama-3.2-1b]

Prints median microseconds per layer. The two are interleaved, on keys and values that are part of
a longer buffer, as in the KV cache.
"""

import argparse
import time
from statistics import median

import torch
from shapes import SHAPES
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from d3cli.kernels.grouped_attention import grouped_attention

LENGTHS = (64, 256, 1024, 4096)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=60)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    config = SHAPES[asked.shape]
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = heads // kv_heads, True
    print(
        f"{asked.shape}, {asked.dtype}, {torch.get_num_threads()} threads: {heads} heads, "
        f"{kv_heads} of keys and values, each of {head_dim}"
    )
    dtype = getattr(torch, asked.dtype)
    for length in LENGTHS:
        query = torch.randn(1, heads, 1, head_dim, dtype=dtype)
        buffers = torch.randn(2, 1, kv_heads, 2 * length, head_dim, dtype=dtype)
        keys, values = buffers[0][:, :, :length], buffers[1][:, :, :length]
        times: dict[str, list[float]] = {"as it is": [], "grouped": []}
        for number in range(asked.rounds + 5):
            for name in sorted(times, reverse=bool(number % 2)):
                attention = grouped_attention if name == "grouped" else sdpa_attention_forward
                began = time.perf_counter()
                attention(module, query, keys, values, None, scaling=head_dim**-0.5)
                if number >= 5:
                    times[name].append(time.perf_counter() - began)
        cells = [f"{name} {1e6 * median(found):.0f}" for name, found in times.items()]
        print(f"{length:5} positions   " + "   ".join(cells))


if __name__ == "__main__":
    main()
