"""Measures how long d3 takes from Enter to its first token, beside importing torch alone.

    python scripts/bench_start.py
    python scripts/bench_start.py --model DIR --rounds 10

Every arm is a process of its own, and the arms take turns. The disk's cache is warm.
"""

import argparse
import statistics
import subprocess
import sys
import time

CLASS = "import transformers.models.llama.modeling_llama"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    d3 = [sys.executable, "-m", "d3cli"]
    arms = {
        "python": [sys.executable, "-c", ""],
        "import torch": [sys.executable, "-c", "import torch"],
        "a model's class, as transformers imports it": [sys.executable, "-c", CLASS],
        "d3 --help": [*d3, "--help"],
        "d3 generate, one token": [*d3, "generate", args.model, "hi", "--max-tokens", "1"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(args.rounds + 1):
        for name, command in arms.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:  # the first round warms the disk's cache
                seconds[name].append(time.perf_counter() - began)
    print("| | median, s | fastest, s |\n|---|---|---|")
    for name, found in seconds.items():
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} |")


if __name__ == "__main__":
    main()
