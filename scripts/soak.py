"""Runs chats and generations for hours in one process and checks for leaks and changes.

    python scripts/soak.py --hours 1 --json soak.json

The built-in model answers its held-out prompts: single replies and conversations, greedy and
sampled, under random schedules. Every half minute the script records resident memory, the heap in
use, open descriptors and threads. Every few minutes a fresh process repeats the last conversation
and must give the same tokens. Exits with 1 if a reply differed or descriptors leaked.
"""

import argparse
import ctypes
import gc
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from d3cli.calibrate.texts import builtin_samples
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel

ALPHAS = ("off", "auto", 0.999, 0.99, 0.97, 0.9)
SAMPLE_S, WARM = 30.0, 0.2  # the share of the samples before which memory may still grow
TURNS = 6  # of a conversation: so many fit into the built-in model's context


def choose(rng: random.Random, prompts: list[str]) -> list[dict[str, Any]]:
    """One conversation as it will be asked for: turns, each with how to answer it."""
    turns = 1 if rng.random() < 0.5 else rng.randint(2, TURNS)
    return [
        {
            "text": rng.choice(prompts),
            "alpha": rng.choice(ALPHAS),
            "temperature": rng.choice((0.0, 0.8)),
            "seed": rng.randrange(1 << 30),
            "max_tokens": rng.randint(8, 64),
        }
        for _ in range(turns)
    ]


def talk(model: LoadedModel, turns: list[dict[str, Any]]) -> list[list[int]]:
    """The token ids of each reply."""
    engine, messages, said = Engine(model), [], []
    for turn in turns:
        messages.append({"role": "user", "content": turn["text"]})
        reply = engine.stream(
            messages,
            schedule=model.schedule(turn["alpha"]),
            sampling=SamplingParams(temperature=turn["temperature"], seed=turn["seed"]),
            max_tokens=turn["max_tokens"],
        )
        chunks = list(reply)
        said.append([chunk.token_id for chunk in chunks])
        messages.append({"role": "assistant", "content": "".join(c.text for c in chunks)})
    return said


def in_a_fresh_process(turns: list[dict[str, Any]]) -> list[list[int]]:
    child = subprocess.run(
        [sys.executable, __file__, "--replay"],
        input=json.dumps(turns),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(child.stdout)


_NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")
_NAMES += ("uordblks", "fordblks", "keepcost")


class _Mallinfo2(ctypes.Structure):
    """As in glibc's malloc.h."""

    _fields_ = [(name, ctypes.c_size_t) for name in _NAMES]


def heap_in_use() -> int:
    """Bytes that the program has from malloc and has not freed; 0 where malloc does not tell."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # no glibc, or one before 2.33
        return 0
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def slope(samples: list[dict[str, float]], name: str) -> tuple[float, float]:
    """Megabytes an hour, and the standard error, once warm."""
    warm = samples[int(WARM * len(samples)) :]
    if len(warm) < 3:
        return 0.0, float("inf")
    hours = np.array([s["seconds"] for s in warm]) / 3600
    sizes = np.array([s[name] for s in warm]) / 1e6
    (rise, _), covariance = np.polyfit(hours, sizes, 1, cov="unscaled")
    rest = sizes - np.polyval((rise, _), hours)
    error = np.sqrt(covariance[0, 0] * (rest**2).sum() / (len(warm) - 2))
    return float(rise), float(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare-every", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, help="write the samples there")
    parser.add_argument("--replay", action="store_true", help="say what stdin asks for, and end")
    asked = parser.parse_args()
    model = load_model(threads=1, device="cpu")
    if asked.replay:
        print(json.dumps(talk(model, json.load(sys.stdin))))
        return
    rng = random.Random(asked.seed)
    messages = [message for sample in builtin_samples(model) for message in sample.messages]
    prompts = [message["content"] for message in messages if message["role"] == "user"]
    process, began = psutil.Process(), time.monotonic()
    samples: list[dict[str, float]] = []
    conversations = replies = tokens = compared = differed = 0
    next_sample, next_comparison = 0.0, asked.compare_every
    while (seconds := time.monotonic() - began) < 3600 * asked.hours:
        turns = choose(rng, prompts)
        said = talk(model, turns)
        conversations, replies = conversations + 1, replies + len(said)
        tokens += sum(map(len, said))
        if seconds >= next_sample:
            next_sample = seconds + SAMPLE_S
            gc.collect()  # what waits for it is no leak
            samples.append(
                {
                    "seconds": seconds,
                    "resident": process.memory_info().rss,
                    "in_use": heap_in_use(),
                    "python_blocks": sys.getallocatedblocks(),
                    "descriptors": process.num_fds(),
                    "threads": process.num_threads(),
                }
            )
        if seconds >= next_comparison:
            next_comparison = seconds + asked.compare_every
            compared += 1
            if in_a_fresh_process(turns) != said:
                differed += 1
                print(f"differs: {json.dumps(turns)}", file=sys.stderr)
    first, last = samples[int(WARM * len(samples))], samples[-1]
    print(
        f"{asked.hours:g} hours: {conversations:,} conversations, {replies:,} replies, {tokens:,} "
        f"tokens"
    )
    for name, title in (("resident", "resident"), ("in_use", "of the heap in use")):
        rise, error = slope(samples, name)
        print(
            f"{title}: {first[name] / 1e6:.1f} MB warm, {last[name] / 1e6:.1f} at the end; "
            f"slope {rise:+.2f} +- {error:.2f} MB an hour"
        )
    for name in ("python_blocks", "descriptors", "threads"):
        print(f"{name.replace('_', ' ')}: {first[name]:,.0f} warm, {last[name]:,.0f} at the end")
    print(f"{compared} conversations said again by fresh processes, {differed} differed")
    if asked.json:
        asked.json.write_text(json.dumps({"asked": str(asked), "samples": samples}))
    if differed or last["descriptors"] > first["descriptors"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
