"""Runs 50 parallel clients against `d3 serve` for minutes; checks replies and memory.

    python scripts/soak_serve.py --minutes 10 --json soak.json
    python scripts/soak_serve.py --model FILE.gguf --minutes 5 --clients 4 --conversations 6

The clients hold conversations with a model, by default the built-in one: greedy and sampled, at
several depths, streamed and whole. Some leave in the middle of a reply. Before the server starts,
engines that do nothing else write what every reply must be. In float32, since reading a prompt in
other pieces rounds differently below it. Exits with 1 on an error other than 503, on a reply that
differs, or if the server's memory grows.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from openai import APIStatusError, AsyncOpenAI

from d3cli.base.settings import BUILTIN
from d3cli.calibrate.texts import builtin_samples
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.model.load import load_model

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"alpha": "off"},
    {"alpha": 0.97, "start": 4},
    {"temperature": 0.8, "seed": 7},
    {"temperature": 1.0, "seed": 11, "top_p": 0.9, "alpha": 0.99},
)
SERVED = "soak"  # the model's id
TURNS, LEAVES = 3, 0.1  # of a conversation; the share of replies that their client leaves
SAMPLE_S, WARM = 2.0, 0.3  # between two looks at memory; the share in which it may still grow
MAY_GROW = 32 << 20  # bytes that the median may rise after that


def conversations(name: str, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Conversations, with the reply that each of their turns must get."""
    model = load_model(name, dtype="float32", device="cpu")
    samples = builtin_samples(model)
    prompts = [one["content"] for each in samples for one in each.messages if one["role"] == "user"]
    found = []
    for number in range(count):
        given = SETTINGS[number % len(SETTINGS)]
        sampling = {name: given[name] for name in ("temperature", "seed", "top_p") if name in given}
        limit, messages, turns = rng.randint(8, 48), [], []
        for _ in range(TURNS):
            messages.append({"role": "user", "content": rng.choice(prompts)})
            model.influence.forget()  # what others sent decides no reply
            reply = Engine(model).stream(
                messages,
                schedule=model.schedule(given.get("alpha", "auto"), start=given.get("start")),
                sampling=SamplingParams.resolve(sampling, model.text.generation_settings),
                max_tokens=limit,
            )
            for _ in reply:
                pass
            turns.append({"messages": list(messages), "expected": reply.text})
            messages.append({"role": "assistant", "content": reply.text})
        found.append({"given": given, "max_tokens": limit, "turns": turns})
    return found


class Soak:
    """The clients, and what happened to them."""

    def __init__(self, url: str, cases: list[dict[str, Any]], until: float) -> None:
        self._client = AsyncOpenAI(base_url=url, api_key="-", max_retries=0, timeout=600)
        self._cases, self._until = cases, until
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    async def __aenter__(self) -> "Soak":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def client(self, number: int) -> None:
        """One client: conversation after conversation."""
        rng = random.Random(number)
        while time.monotonic() < self._until:
            case = rng.choice(self._cases)
            for turn in case["turns"]:
                if not await self._turn(rng, number, case, turn):
                    break

    async def _turn(
        self, rng: random.Random, number: int, case: dict[str, Any], turn: dict[str, Any]
    ) -> bool:
        """Asks for one reply until there is one; returns whether the conversation goes on."""
        while time.monotonic() < self._until:
            try:
                text = await self._ask(rng, number, case, turn)
            except APIStatusError as error:
                if error.status_code != 503:
                    self.problems.append(f"status {error.status_code}: {error}")
                    return False
                self.counts["503"] += 1
                await asyncio.sleep(float(error.response.headers["retry-after"]) * rng.random())
                continue
            if text is None:
                self.counts["left"] += 1
                return False
            self.counts["replies"] += 1
            if text != turn["expected"]:
                self.problems.append(f"{text!r} instead of {turn['expected']!r}")
            return True
        return False

    async def _ask(
        self, rng: random.Random, number: int, case: dict[str, Any], turn: dict[str, Any]
    ) -> str | None:
        own = {name: case["given"][name] for name in ("alpha", "start") if name in case["given"]}
        named = {name: value for name, value in case["given"].items() if name not in own}
        body = {
            "model": SERVED,
            "messages": turn["messages"],
            "max_tokens": case["max_tokens"],
            "user": str(number),
            "extra_body": own,
            **named,
        }
        create = self._client.chat.completions.create
        leaves = rng.random() < LEAVES
        if not leaves and rng.random() < 0.5:
            return (await create(**body)).choices[0].message.content
        stream, text = await create(**body, stream=True), ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if leaves and text:
                await stream.close()
                return None
        return text


async def watch(process: psutil.Process, until: float) -> list[dict[str, float]]:
    """The server's memory, descriptors and threads over time."""
    samples = []
    while time.monotonic() < until:
        samples.append(
            {
                "rss": process.memory_info().rss,
                "descriptors": process.num_fds(),
                "threads": process.num_threads(),
            }
        )
        await asyncio.sleep(SAMPLE_S)
    return samples


def growth(values: list[float]) -> float:
    """How much the median of the last third is above that of the third before it."""
    warm = values[int(WARM * len(values)) :]
    half = len(warm) // 2
    return statistics.median(warm[half:]) - statistics.median(warm[:half]) if half else 0.0


def slope(values: list[float]) -> float:
    """How much the values rise a minute, after the first share of them."""
    warm = values[int(WARM * len(values)) :]
    if len(warm) < 2:
        return 0.0
    return statistics.linear_regression(range(len(warm)), warm).slope * 60 / SAMPLE_S


async def run(url: str, process: psutil.Process, args: argparse.Namespace, cases: Any) -> Any:
    until = time.monotonic() + 60 * args.minutes
    async with Soak(url, cases, until) as soak:
        samples, *_ = await asyncio.gather(
            watch(process, until), *(soak.client(number) for number in range(args.clients))
        )
    return soak, samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--conversations", type=int, default=60)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = conversations(args.model, args.conversations, random.Random(1))
    command = [sys.executable, "-m", "d3cli", "serve", args.model, "--served-name", SERVED]
    command += ["--port", "0", "--dtype", "float32"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr
        lines = iter(server.stderr.readline, "")
        url = next(found[1] for line in lines if (found := re.search(r"listening on (\S+)", line)))
        soak, samples = asyncio.run(run(url, psutil.Process(server.pid), args, cases))
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(60)
    figures = {
        "minutes": args.minutes,
        "clients": args.clients,
        **soak.counts,
        "problems": len(soak.problems),
        "exit_code": server.returncode,
        "rss_growth": growth([sample["rss"] for sample in samples]),
        "rss_slope_per_minute": slope([sample["rss"] for sample in samples]),
        "most_rss": max(sample["rss"] for sample in samples),
        "last": samples[-1],
    }
    print(json.dumps(figures))
    for problem in soak.problems[:5]:
        print(problem, file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps({"figures": figures, "samples": samples}))
    return int(bool(soak.problems) or figures["rss_growth"] > MAY_GROW or server.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
