"""Measures decoding speed against Hugging Face's generate and against the memory bandwidth.

    make bench                                             # the Llama-3.2-1B shape, in bfloat16
    python scripts/bench_decode.py --quantization bnb-4bit # its layers in 4 bits as well
    python scripts/bench_decode.py --model demo --dtype float32

One process and one set of weights on disk. Speed does not depend on the weights' values, so a
shape gets random ones. Every arm is warmed up and decodes --tokens tokens from the same prompt. A
round runs all arms forward and then backward, so that other load affects all of them equally.
Ratios are taken within half a round; their medians are printed with 95% bootstrap intervals. The
read bandwidth is measured before and after. If the two differ by more than a tenth, the run is
marked unsteady.

- `HF generate`: transformers' own loop and dynamic cache, on a separate plain model.
- `HF static`: the same with its static cache.
- `HF compiled` (with --compile): with its static cache and `torch.compile`.
- `GEMVs alone`: only one product for each weight matrix of a full-depth step.
- `d3`: forced tokens at full depth and at constant depths; `d3 schedule`: steps spread over a reply
  of 256 tokens under alpha 0.99, at their own depths.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from d3cli.base.hardware import processor_name, system, versions
from d3cli.base.settings import BUILTIN
from d3cli.cli.doctor.probe import read_bandwidth
from d3cli.decode.loop import decode_step
from d3cli.decode.stats import peak_memory
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.files.names import find_model
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.used import kernels_used
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import median_interval
from d3cli.scoring.step_times import fill_cache, spread_steps

sys.path.insert(0, str(Path(__file__).parent))
from shapes import SHAPES, save_checkpoint

ROOT = Path(__file__).parent.parent
RATIOS = (1.33, 1.6, 2.0)
PROMPT, REPLY = 32, 256
STEADY = 0.1  # largest relative difference of the bandwidths before and after
HF, HF_STATIC, HF_COMPILED, GEMVS, FULL, SCHEDULE = (
    "HF generate",
    "HF static",
    "HF compiled",
    "GEMVs alone",
    "d3 full depth",
    "d3 schedule",
)


@dataclass
class Arm:
    """One way to decode, and its times in seconds a token, one for each half of a round.

    Attributes:
        run: decodes the given number of tokens and returns the seconds per token.
        depth: layers that it runs on average; None where that is no matter.
        bytes: weights that it reads a token.
    """

    name: str
    run: Callable[[], float]
    depth: float | None = None
    bytes: float | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def measure(self) -> None:
        cpu = time.process_time()
        self.seconds.append(self.run())
        self.cpu_s.append(time.process_time() - cpu)


class Stamps(BaseStreamer):
    """Records when `generate` yields each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002 - transformers' own signature
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


def hf_arm(name: str, plain: Any, prompt: Sequence[int], tokens: int, **settings: Any) -> Arm:
    """Transformers' generate, greedy, without its prefill."""
    ids = torch.tensor([list(prompt)])

    def run() -> float:
        stamps = Stamps()
        plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=tokens + 1,
            max_new_tokens=tokens + 1,
            do_sample=False,
            streamer=stamps,
            pad_token_id=0,
            **settings,
        )
        # The streamer gets the prompt first, then token 0, which comes out of the prefill.
        assert len(stamps.times) == tokens + 2
        return (stamps.times[-1] - stamps.times[1]) / tokens

    return Arm(name, run)


def gemv_arm(model: LoadedModel, tokens: int, prefix: str) -> Arm:
    """Only the products of one step, on inputs prepared before."""
    kinds = (nn.Linear, EightBitLinear)
    linears = [m for m in model.causal_lm.modules() if isinstance(m, kinds)]
    dtype = model.causal_lm.dtype
    inputs = [torch.rand(1, 1, m.in_features, dtype=dtype) for m in linears]

    def run() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            for _ in range(tokens):
                for linear, vector in zip(linears, inputs, strict=True):
                    linear(vector)
        return (time.perf_counter() - began) / tokens

    return Arm(prefix + GEMVS, run, model.num_layers, model.weight_bytes.total)


def d3_arm(
    name: str, model: LoadedModel, document: Document, schedule: DepthSchedule, steps: Sequence[int]
) -> Arm:
    """Forced tokens, each step from a cache that holds all before it at full depth."""
    cache = fill_cache(model, document)
    whole = cache.position

    def run() -> float:
        # Only lengths change: the buffers keep their contents, so the next run finds a full cache.
        for layer in cache.layers:
            layer.length = whole
        cache.position = cache.full_length = whole
        seconds = 0.0
        for step in reversed(steps):
            cache.crop(len(document.prompt_ids) + step - 1)
            began = time.perf_counter()
            decode_step(model, cache, document.response_ids[step - 1], schedule.dropped(step))
            seconds += time.perf_counter() - began
        return seconds / len(steps)

    weights = model.weight_bytes
    depth = sum(schedule.depth(step) for step in steps) / len(steps)
    saved = sum(sum(weights.saved(schedule.dropped(step))) for step in steps) / len(steps)
    return Arm(name, run, depth, weights.total - saved)


def arms_of(
    model: LoadedModel, plain: Any | None, document: Document, tokens: int, prefix: str
) -> Iterator[Arm]:
    if plain is not None:
        yield hf_arm(HF, plain, document.prompt_ids, tokens)
        yield hf_arm(HF_STATIC, plain, document.prompt_ids, tokens, cache_implementation="static")
    yield gemv_arm(model, tokens, prefix)
    early = list(range(1, tokens + 1))
    full = DepthSchedule.full(model.num_layers)
    yield d3_arm(prefix + FULL, model, document, full, early)
    order = [str(layer) for layer in range(1, model.num_layers - 1)]
    for ratio in RATIOS:
        dropped = model.num_layers - round(model.num_layers / ratio)
        schedule = static_schedule(model.weight_bytes, order[:dropped])
        name = f"{prefix}d3 {model.num_layers - dropped} of {model.num_layers} layers"
        yield d3_arm(name, model, document, schedule, early)
    yield d3_arm(
        prefix + SCHEDULE, model, document, model.schedule(0.99), spread_steps(REPLY, tokens)
    )


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95% bootstrap interval."""
    return median(ratios), *median_interval(ratios)


def paired(numerator: Arm, denominator: Arm) -> list[float]:
    return [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]


def plain_model(directory: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--model", help="a directory, an alias or demo, instead of a shape")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--quantization", choices=["bnb-4bit"], help="measure this quantization too"
    )
    parser.add_argument("--compile", action="store_true", help="HF with torch.compile too")
    parser.add_argument("--tokens", type=int, default=8, help="tokens per arm and half round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write raw samples to this file")
    asked = parser.parse_args()
    name = asked.model
    if name is None:
        path = ROOT / "build" / asked.shape
        if not (path / "config.json").exists():
            save_checkpoint(SHAPES[asked.shape], path)
        name = str(path)
    model = load_model(name, dtype=asked.dtype, device="cpu", threads=asked.threads)
    directory = find_model(BUILTIN).path if model.origin.builtin else Path(name)
    plain = plain_model(directory, model.causal_lm.dtype)
    rng = np.random.default_rng(0)
    ids = rng.integers(100, int(model.causal_lm.config.vocab_size) - 100, PROMPT + REPLY).tolist()
    document = Document(ids[:PROMPT], ids[PROMPT:])
    arms = list(arms_of(model, plain, document, asked.tokens, ""))
    if asked.compile:
        compiled = plain_model(directory, model.causal_lm.dtype)
        compiled.forward = torch.compile(compiled.forward)
        settings = {"cache_implementation": "static"}
        arms.insert(2, hf_arm(HF_COMPILED, compiled, document.prompt_ids, asked.tokens, **settings))
    if asked.quantization:
        small = load_model(name, quantization=asked.quantization, device="cpu")
        arms += arms_of(small, None, document, asked.tokens, "4-bit ")
    working = []
    for arm in arms:  # each depth once, untimed
        try:
            arm.run()
        except Exception as error:  # another library's path that does not work here
            if not arm.name.startswith("HF"):
                raise
            print(f"{arm.name} does not work here: {str(error).splitlines()[0][:90]}")
            continue
        working.append(arm)
    load_before, before = os.getloadavg(), read_bandwidth(model.device)
    for number in range(asked.rounds):
        for arm in (*working, *reversed(working)):
            arm.measure()
        print(f"round {number + 1} of {asked.rounds}", file=sys.stderr)
    after, load_after = read_bandwidth(model.device), os.getloadavg()
    report(asked, model, working, (before, after), (load_before, load_after))


def report(
    asked: argparse.Namespace,
    model: LoadedModel,
    arms: Sequence[Arm],
    bandwidth: tuple[float, float],
    loads: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    by_name = {arm.name: arm for arm in arms}
    best = min((a for a in arms if a.name.startswith("HF")), key=lambda a: median(a.seconds))
    roof = sum(bandwidth) / 2
    steady = abs(bandwidth[1] - bandwidth[0]) <= STEADY * max(bandwidth)
    print(
        f"{model.name}, {asked.dtype}, {torch.get_num_threads()} threads, {processor_name()}; "
        f"{asked.rounds} rounds of {asked.tokens} tokens\n"
        f"read bandwidth {bandwidth[0] / 1e9:.1f} GB/s before, {bandwidth[1] / 1e9:.1f} after: "
        f"{'steady' if steady else 'UNSTEADY'}; load {loads[0][0]:.1f} and {loads[1][0]:.1f}"
    )
    narrow, wide = ("ms", "CPU ms"), ("x HF's best", "x full depth")
    titles = "".join(f"{title:>10}" for title in narrow) + "".join(f"{title:>20}" for title in wide)
    print(f"{'':26}{titles}" + "".join(f"{t:>10}" for t in ("layers x", "bytes x", "of roof")))
    for arm in arms:
        ours = by_name[("4-bit " if arm.name.startswith("4-bit ") else "") + FULL]
        cells = [f"{1000 * median(arm.seconds):10.1f}"]
        cells.append(f"{1000 * median(arm.cpu_s) / asked.tokens:10.1f}")
        cells.append("{:>20}".format("{:.2f} ({:.2f}-{:.2f})".format(*interval(paired(best, arm)))))
        cells.append("{:>20}".format("{:.2f} ({:.2f}-{:.2f})".format(*interval(paired(ours, arm)))))
        cells.append("" if arm.depth is None else f"{model.num_layers / arm.depth:10.2f}")
        if arm.bytes is not None and ours.bytes is not None:
            cells.append(f"{ours.bytes / arm.bytes:10.2f}")
            cells.append(f"{arm.bytes / median(arm.seconds) / roof:10.0%}")
        print(f"{arm.name:26}" + "".join(cells))
    for prefix in ("", "4-bit "):
        constant = [a for a in arms if a.name.startswith(f"{prefix}d3") and SCHEDULE not in a.name]
        if len(constant) < 3:
            continue
        x = np.array([arm.depth for arm in constant])
        y = np.array([1000 * median(arm.seconds) for arm in constant])
        slope, fixed = np.polyfit(x, y, 1)
        rest = float(((y - fixed - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        print(
            f"{prefix}t = {fixed:.1f} + {slope:.2f} ms a layer; a/b = {fixed / slope:.1f} layers, "
            f"R2 = {1 - rest:.4f}"
        )
    for shape, kernel in kernels_used(model.causal_lm).items():
        print(f"weights of {shape}: {kernel}")
    print(f"peak memory {peak_memory(model.device) / 1e9:.2f} GB, with both copies of the weights")
    if asked.json:
        data = {
            "asked": {key: str(value) for key, value in vars(asked).items()},
            "machine": {"processor": processor_name(), "system": system()},
            "versions": versions(),
            "kernels": kernels_used(model.causal_lm),
            "bandwidth": bandwidth,
            "load": loads,
            "steady": steady,
            "arms": [
                {"name": arm.name, "depth": arm.depth, "bytes": arm.bytes}
                | {"seconds": arm.seconds, "cpu_s": arm.cpu_s}
                for arm in arms
            ],
        }
        asked.json.write_text(json.dumps(data))


if __name__ == "__main__":
    main()
