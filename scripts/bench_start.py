"""Measures how long d3 takes from Enter to its first token or prompt, beside importing torch alone.

    python scripts/bench_start.py
    python scripts/bench_start.py --model DIR --rounds 10

Every arm is a process of its own, and the arms take turns. The disk's cache is warm. The arms of
`d3 chat` need the test dependencies: pexpect is the terminal.
"""

import argparse
import statistics
import subprocess
import sys
import time
from functools import partial

import pexpect

CLASS = "import transformers.models.llama.modeling_llama"
PROMPT = ">>>"
# What asks a terminal for the place of its cursor, and an answer.
WHERE, HERE = "\x1b[6n", "\x1b[2;1R"


def run(command: list[str]) -> float:
    """Seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def chat(command: list[str], shown: str) -> float:
    """Seconds until a chat shows this; `hi` is said at its first prompt."""
    began = time.perf_counter()
    child = pexpect.spawn(command[0], command[1:], encoding="utf-8", codec_errors="replace")
    child.delaybeforesend = None
    said = False
    while found := child.expect_exact([shown, WHERE, PROMPT], timeout=120):
        if found == 1:
            child.send(HERE)
        elif not said:
            child.send("hi\r")
            said = True
    seconds = time.perf_counter() - began
    child.close(force=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    d3 = [sys.executable, "-m", "d3cli"]
    once = ["--max-tokens", "1"]
    talk = [*d3, "chat", args.model, "--no-save", *once]
    arms = {
        "python": partial(run, [sys.executable, "-c", ""]),
        "import torch": partial(run, [sys.executable, "-c", "import torch"]),
        "a model's class, as transformers imports it": partial(run, [sys.executable, "-c", CLASS]),
        "d3 --help": partial(run, [*d3, "--help"]),
        "d3 generate, one token": partial(run, [*d3, "generate", args.model, "hi", *once]),
        "d3 chat, its prompt": partial(chat, talk, PROMPT),
        "d3 chat, one token of a reply to `hi`": partial(chat, talk, "1 token"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(args.rounds + 1):
        for name, measure in arms.items():
            took = measure()
            if number:  # the first round warms the disk's cache
                seconds[name].append(took)
    print("| | median, s | fastest, s |\n|---|---|---|")
    for name, found in seconds.items():
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} |")


if __name__ == "__main__":
    main()
