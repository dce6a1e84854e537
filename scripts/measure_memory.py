"""Compares predicted memory with the measured peak, each model in a separate process.

    python scripts/measure_memory.py DIRECTORY...       # each in bf16, float32, 4 and 8 bits
    python scripts/measure_memory.py                    # three random shapes, made in build/

The peak is the largest resident memory of a whole `d3` run: load, a prompt, a reply. Memory held
before loading (Python, torch, transformers) is shown separately and not predicted.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

DEFAULT_SHAPES = ("smollm2-135m", "tinyllama-1.1b", "llama-3.2-1b")
ARMS = (("bfloat16", None), ("float32", None), ("bfloat16", "bnb-4bit"), ("bfloat16", "bnb-8bit"))


def measure(directory: str, dtype: str, quantization: str | None, prompt: int, reply: int) -> None:
    """In the child: predict, then load and decode; prints one JSON line."""
    import psutil
    import torch

    from d3cli.decode.sampling import SamplingParams
    from d3cli.decode.session import Engine
    from d3cli.decode.stats import peak_memory
    from d3cli.files.safetensors import describe_directory
    from d3cli.model.load import load_model
    from d3cli.model.memory import predict_memory

    before = psutil.Process().memory_info().rss
    need = predict_memory(
        describe_directory(directory, Path(directory)),
        dtype=getattr(torch, dtype),
        quantization=quantization,
        prompt_tokens=prompt,
        reply_tokens=reply,
    )
    model = load_model(directory, dtype=dtype, quantization=quantization, device="cpu", force=True)
    ids = [5 + i % 1000 for i in range(prompt)]
    for alpha in ("off", 0.95):
        list(
            Engine(model).stream_ids(
                ids, schedule=model.schedule(alpha), sampling=SamplingParams(), max_tokens=reply
            )
        )
    after = psutil.Process().memory_info().rss
    print(
        json.dumps(
            {
                "before": before,
                "weights": need.weights,
                "kv_cache": need.kv_cache,
                "rest": need.workspace + need.program,
                "predicted": before + need.total,
                "peak": peak_memory(torch.device("cpu")),
                "after": after,
            }
        )
    )


def run(directory: Path, dtype: str, quantization: str | None, prompt: int, reply: int) -> dict:
    """One arm in a child process."""
    arguments = [str(directory), dtype, quantization or "none", str(prompt), str(reply)]
    child = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if child.returncode:
        raise SystemExit(child.stderr)
    return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        directory, dtype, quantization, prompt, reply = sys.argv[2:]
        wanted = None if quantization == "none" else quantization
        return measure(directory, dtype, wanted, int(prompt), int(reply))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="*", type=Path)
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--reply", type=int, default=8, help="tokens")
    args = parser.parse_args()
    if not args.directories:
        from shapes import SHAPES, save_checkpoint  # here: a child must not import transformers

        args.directories = [Path("build") / name for name in DEFAULT_SHAPES]
        for directory in args.directories:
            if not directory.exists():
                save_checkpoint(SHAPES[directory.name], directory)
    print("| shape | weights in | weights | KV | rest | predicted peak | measured | error |")
    print("|---|---|---|---|---|---|---|---|")
    for directory in args.directories:
        for dtype, quantization in ARMS:
            row = run(directory, dtype, quantization, args.prompt, args.reply)
            error = row["predicted"] / row["peak"] - 1
            print(
                f"| {directory.name} | {quantization or dtype} | {row['weights'] / 1e6:,.0f} | "
                f"{row['kv_cache'] / 1e6:,.0f} | {row['rest'] / 1e6:,.0f} | "
                f"{row['predicted'] / 1e6:,.0f} | {row['peak'] / 1e6:,.0f} | {error:+.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
