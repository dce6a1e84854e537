"""Compares predicted memory with the measured peak, each model in a separate process.

    python scripts/measure_memory.py MODEL...           # each in bf16, float32, 4 and 8 bits
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
# "plain" stands for weights in bfloat16 that are not packed.
ARMS = (
    ("bfloat16", None),
    ("bfloat16", "plain"),
    ("float32", None),
    *(("bfloat16", kind) for kind in ("int4", "nested", "int8", "bnb-4bit", "bnb-8bit")),
)
# Shape, dtype, quantization and prompt tokens.
CHECKED = (
    ("wide", "bfloat16", None, 64),
    ("wide", "bfloat16", "plain", 64),
    ("wide", "float32", None, 64),
    ("wide", "bfloat16", "int4", 64),
    ("wide", "bfloat16", "nested", 64),
    ("wide", "bfloat16", "bnb-4bit", 64),
    ("deep", "bfloat16", None, 64),
    ("cache", "bfloat16", None, 3000),
)
# The peak is sometimes higher than necessary on a busy machine, so the best of these runs counts.
TRIES = 4


def measure(model_name: str, dtype: str, quantization: str | None, prompt: int, reply: int) -> None:
    """In the child: predict, then load and decode; prints one JSON line.

    No kernels are measured: weights in bfloat16, and the LM head, are packed where that is
    possible. If ``D3_KERNELS`` is "torch", they are plain, and the head may have 8 bits.
    """
    import psutil
    import torch

    from d3cli.decode.sampling import SamplingParams
    from d3cli.decode.session import Engine
    from d3cli.decode.stats import peak_memory
    from d3cli.files.names import find_model
    from d3cli.kernels.choices import KernelChoices
    from d3cli.model.checkpoint import open_checkpoint
    from d3cli.model.load import load_model
    from d3cli.model.memory import predict_memory

    KernelChoices.prepare = lambda *_, **__: None
    KernelChoices.current = KernelChoices.expected
    KernelChoices.head_in_8_bits = KernelChoices.expected_head_in_8_bits
    before = psutil.Process().memory_info().rss
    need = predict_memory(
        open_checkpoint(find_model(model_name, offline=True)).description,
        dtype=getattr(torch, dtype),
        quantization=quantization,
        prompt_tokens=prompt,
        reply_tokens=reply,
    )
    model = load_model(model_name, dtype=dtype, quantization=quantization, device="cpu", force=True)
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
                "rest": need.rest,
                "predicted": before + need.total,
                "peak": peak_memory(torch.device("cpu")),
                "after": after,
            }
        )
    )


def run(directory: Path, dtype: str, quantization: str | None, prompt: int, reply: int) -> dict:
    """One arm in a child process."""
    plain = quantization == "plain"
    kind = "none" if plain or quantization is None else quantization
    arguments = [str(directory), dtype, kind, str(prompt), str(reply)]
    child = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "D3_KERNELS": "torch" if plain else "auto"},
    )
    if child.returncode:
        raise SystemExit(child.stderr)
    return json.loads(child.stdout.splitlines()[-1])


def print_row(name: str, arm: str, row: dict[str, int]) -> float:
    """Prints a row of the table and returns the relative error of the prediction."""
    error = row["predicted"] / row["peak"] - 1
    numbers = (row[key] for key in ("weights", "kv_cache", "rest", "predicted", "peak"))
    cells = " | ".join(f"{number / 1e6:,.0f}" for number in numbers)
    print(f"| {name} | {arm} | {cells} | {error:+.1%} |", flush=True)
    return error


def random_checkpoint(name: str) -> Path:
    """The directory of a random model in ``build/``, which is made once."""
    from shapes import SHAPES, save_checkpoint  # here: a child must not import transformers

    directory = Path("build") / name
    if not directory.exists():
        save_checkpoint(SHAPES[name], directory)
    return directory


def check() -> None:
    """Exits with 1 if a prediction is 10% off in all tries."""
    failed = []
    for name, dtype, quantization, prompt in CHECKED:
        directory = random_checkpoint(name)
        arm = f"{quantization or dtype}, {prompt} tokens"
        for _ in range(TRIES):
            if abs(print_row(name, arm, run(directory, dtype, quantization, prompt, 4))) < 0.1:
                break
        else:
            failed.append(f"{name} ({arm})")
    if failed:
        raise SystemExit(f"10% off: {', '.join(failed)}")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        directory, dtype, quantization, prompt, reply = sys.argv[2:]
        wanted = None if quantization == "none" else quantization
        return measure(directory, dtype, wanted, int(prompt), int(reply))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="directories or GGUF files")
    parser.add_argument("--check", action="store_true", help="fail if a prediction is 10%% off")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--reply", type=int, default=8, help="tokens")
    args = parser.parse_args()
    print("| shape | weights in | weights | KV | rest | predicted peak | measured | error |")
    print("|---|---|---|---|---|---|---|---|")
    if args.check:
        return check()
    for model in args.models or map(random_checkpoint, DEFAULT_SHAPES):
        for dtype, quantization in ARMS:
            row = run(model, dtype, quantization, args.prompt, args.reply)
            print_row(model.name, quantization or dtype, row)


if __name__ == "__main__":
    main()
