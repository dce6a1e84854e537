"""Measures what the live table of d3 profile costs: decoding with and without it, interleaved.

    python scripts/bench_profile.py --model PATH [--alpha off] [--tokens 193] [--rounds 4]

Within each reply the table is drawn during every other stretch of eight tokens, so that other load
affects both equally. It is drawn to a terminal of 120 columns and 50 lines, which another process
reads. Prints two figures: the share of time outside decode steps while the table is drawn, and how
much longer a stretch takes than its neighbour without it.
"""

import argparse
import fcntl
import os
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.live import Live

from d3cli import load_model
from d3cli.cli.profile.live import ProfileView
from d3cli.decode.sampling import SamplingParams
from d3cli.depth.parse import parse_alpha
from d3cli.profile.profiler import Profiler
from d3cli.profile.run import ProfileOptions, Prompt

ROWS, COLUMNS = 50, 120
STRETCH = 8  # tokens
GROUP = 4 * STRETCH  # tokens of one ABBA group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--alpha", default="off")
    parser.add_argument("--tokens", type=int, default=193)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    groups = max(0, asked.tokens - 1) // GROUP * asked.rounds
    if groups < 2:
        parser.error(
            f"--tokens {asked.tokens} and --rounds {asked.rounds} make {groups} ABBA groups; "
            f"quartiles need two, of {GROUP} tokens each, after the first token of a round"
        )
    model = load_model(asked.model, threads=asked.threads)
    options = ProfileOptions(
        schedule=model.schedule(parse_alpha(asked.alpha)),
        source="flags",
        sampling=SamplingParams(),
        max_tokens=asked.tokens,
    )
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    null = subprocess.DEVNULL
    reader = subprocess.Popen(["cat"], stdin=master, stdout=null, stderr=null)
    terminal = os.fdopen(slave, "w")
    console = Console(file=terminal, force_terminal=True, color_system="truecolor")
    text = "Tell me a story about a fox."
    prompt = Prompt(text, ({"role": "user", "content": text},))

    ratios, outside = [], []
    for number in range(asked.rounds + 1):
        [run] = Profiler(model, options).runs(prompt)
        stretches: list[tuple[float, float]] = []  # seconds in all, seconds of decode steps
        with Live(console=console, screen=True, auto_refresh=False) as live:
            view = ProfileView(live, model, options.schedule, asked.tokens, 1, 1)
            view.begin(run, 1)
            chunks = iter(run)
            next(chunks)  # token 0, with the prompt
            for stretch in range((asked.tokens - 1) // STRETCH):
                view.live = live if stretch % 4 in (1, 2) else None  # ABBA
                decoded, began = run.decode_s, time.perf_counter()
                for _ in range(STRETCH):
                    if next(chunks, None) is None:
                        sys.exit(
                            f"the reply ended after {len(run.reply.tokens)} tokens: give --tokens "
                            "at most that, or another model"
                        )
                    view.add(run)
                stretches.append((time.perf_counter() - began, run.decode_s - decoded))
        if not number:
            continue  # the first run warms up
        for first in range(0, len(stretches) - 3, 4):
            plain, drawn, also_drawn, also_plain = stretches[first : first + 4]
            ratios.append((drawn[0] + also_drawn[0]) / (plain[0] + also_plain[0]))
            outside += [1 - steps / seconds for seconds, steps in (drawn, also_drawn)]
        print(
            f"round {number}: {1000 * run.decode_s / len(run.ms):.1f} ms a token; outside of "
            f"decoding {median(outside):.2%}, stretches {median(ratios):.3f} times as long so far"
        )
    terminal.close()
    reader.kill()
    low, high = quantiles(ratios, n=4)[0], quantiles(ratios, n=4)[2]
    print(
        f"{Path(asked.model).name}, {torch.get_num_threads()} threads: while it is drawn, "
        f"{median(outside):.2%} of the time is outside of decode steps (most {max(outside):.2%}); "
        f"stretches with it take {median(ratios):.3f} times as long (quartiles {low:.3f} to "
        f"{high:.3f} of {len(ratios)} ABBA groups)"
    )


if __name__ == "__main__":
    main()
