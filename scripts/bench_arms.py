"""The arms of `bench_decode.py`: ways to decode, all in one process, in turn.

`measure` is what one process does: it loads every model, warms every arm up, and runs them. A round
runs all arms forward and then backward, so that other load affects all of them equally. Knows
nothing of other processes or tables.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.generation.streamers import BaseStreamer

from d3cli.base.errors import spelled
from d3cli.base.hardware import processor_name, system, versions
from d3cli.cli.doctor.probe import read_bandwidth
from d3cli.decode.loop import decode_step
from d3cli.decode.stats import peak_memory
from d3cli.depth.schedule import DepthSchedule, schedule_of, static_schedule
from d3cli.files.names import ModelFiles, find_model
from d3cli.kernels.int4_linear import FourBitLinear
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.nested_linear import NestedLinear
from d3cli.kernels.process import no_progress_bar, prepare_process
from d3cli.kernels.used import kernels_used
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.step_times import fill_cache, spread_steps

sys.path.insert(0, str(Path(__file__).parent))
from llama_cpp_arm import LlamaCpp, LlamaFile, installed_version
from shapes import shape_of

RATIOS = (1.33, 1.6, 2.0)
PROMPT, REPLY = 32, 256  # tokens
FULL_DEPTH = "full depth"
ALPHA = 0.99
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """What one process measures.

    Attributes:
        model: a name that d3 loads.
        dtype: of d3's plain arms and of transformers'.
        quantizations: of d3's other arms.
        compiled: whether transformers' forward is also compiled.
        llama_files: what llama.cpp decodes.
        tokens: that an arm decodes in half a round.
        rounds: of all arms, forward and backward.
        threads: None leaves torch's choice.
    """

    model: str
    dtype: str
    quantizations: Sequence[str]
    compiled: bool
    llama_files: Sequence[LlamaFile]
    tokens: int
    rounds: int
    threads: int | None


@dataclass
class Arm:
    """One way to decode, and its seconds a token in each half of a round.

    Attributes:
        group: arms that compute with the same weights, such as "d3 int4".
        run: decodes some tokens and returns the seconds per token.
        reference: the name of the arm that runs the same steps at full depth.
        depth: layers that it runs on average; None where d3 does not count them.
        bytes: weights that it reads a token.
    """

    name: str
    group: str
    run: Callable[[], float]
    reference: str | None = None
    depth: float | None = None
    bytes: float | None = None
    seconds: list[float] = field(default_factory=list)


class Stamps(BaseStreamer):
    """Records when `generate` yields each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002 - transformers' own signature
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


def hf_arms(plain: Any, document: Document, settings: Settings) -> Iterator[Arm]:
    """Transformers' generate, greedy, without its prefill."""
    ids = torch.tensor([document.prompt_ids])
    tokens = settings.tokens

    def run(forward: Any = None, **options: Any) -> float:
        stamps = Stamps()
        if forward is not None:
            plain.forward = forward
        try:
            plain.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=tokens + 1,
                max_new_tokens=tokens + 1,
                do_sample=False,
                streamer=stamps,
                pad_token_id=0,
                **options,
            )
        finally:
            if forward is not None:
                del plain.forward
        # The streamer gets the prompt first, then token 0, which comes out of the prefill.
        assert len(stamps.times) == tokens + 2
        return (stamps.times[-1] - stamps.times[1]) / tokens

    static = partial(run, cache_implementation="static")
    yield Arm("HF dynamic cache", "HF", run)
    yield Arm("HF static cache", "HF", static)
    if settings.compiled:
        compiled = torch.compile(plain.forward)
        yield Arm("HF static, compiled", "HF", partial(static, forward=compiled))


def plain_model(files: ModelFiles, dtype: torch.dtype) -> Any:
    """The model as transformers itself loads it; a GGUF file's weights unpacked."""
    directory, options = files.path, {}
    if files.gguf is not None:
        directory = files.path.parent
        unpacked = GgufConfig(dequantize=True)
        options = {"gguf_file": files.path.name, "quantization_config": unpacked}
    with no_progress_bar():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **options).eval()


def gemv_arm(group: str, model: LoadedModel, tokens: int) -> Arm:
    """Only the products of one step, on inputs prepared before."""
    kinds = (nn.Linear, EightBitLinear, FourBitLinear, NestedLinear)
    planes = {
        p for m in model.causal_lm.modules() if isinstance(m, NestedLinear) for p in (m.high, m.low)
    }
    linears = [m for m in model.causal_lm.modules() if isinstance(m, kinds) and m not in planes]
    dtype = model.causal_lm.dtype
    inputs = [torch.rand(1, 1, m.in_features, dtype=dtype) for m in linears]

    def run() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            for _ in range(tokens):
                for linear, vector in zip(linears, inputs, strict=True):
                    linear(vector)
        return (time.perf_counter() - began) / tokens

    name, reference = f"{group}, products alone", f"{group}, {FULL_DEPTH}"
    return Arm(name, group, run, reference, None, model.weight_bytes.total)


def d3_arms(
    group: str, model: LoadedModel, document: Document, tokens: int, *, decaying: bool
) -> Iterator[Arm]:
    """Forced tokens at full depth and at constant depths; of nested weights, with fewer low planes.

    All arms share one cache, and put its lengths back before they run. What they write over its
    rows does not change their times.

    Args:
        decaying: also under a decaying schedule, at steps spread over a long reply.
    """
    cache = fill_cache(model, document)
    whole, weights, layers = cache.position, model.weight_bytes, model.num_layers

    def arm(name: str, schedule: DepthSchedule, steps: Sequence[int], reference: str) -> Arm:
        def run() -> float:
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

        depth = sum(schedule.depth(step) for step in steps) / len(steps)
        read = sum(weights.read(schedule.dropped(step)) for step in steps) / len(steps)
        return Arm(f"{group}, {name}", group, run, f"{group}, {reference}", depth, read)

    early, full = range(1, tokens + 1), DepthSchedule.full(layers)
    yield arm(FULL_DEPTH, full, early, FULL_DEPTH)
    order = list(map(str, range(1, layers - 1)))
    core = ceil(layers / 4)
    flex = order[core - 1 : 1 - core]
    if weights.is_nested:
        flex = list(weights.unit_names("plane"))
        half = static_schedule(weights, flex[: len(flex) // 2])
        yield arm("half of the low planes", half, early, FULL_DEPTH)
        yield arm("high planes alone", static_schedule(weights, flex), early, FULL_DEPTH)
    else:
        for ratio in RATIOS:
            dropped = layers - round(layers / ratio)
            name = f"{layers - dropped} of {layers} layers"
            yield arm(name, static_schedule(weights, order[:dropped]), early, FULL_DEPTH)
    if decaying:
        spread, over = spread_steps(REPLY, tokens), f"over {REPLY} tokens"
        schedule = schedule_of(weights, flex, ALPHA, 0)
        yield arm(f"{FULL_DEPTH} {over}", full, spread, f"{FULL_DEPTH} {over}")
        yield arm(f"alpha {ALPHA} {over}", schedule, spread, f"{FULL_DEPTH} {over}")


def llama_arm(file: LlamaFile, document: Document, tokens: int, threads: int) -> Arm:
    model = LlamaCpp(file, document.prompt_ids, threads)
    run = partial(model.seconds_per_token, document.response_ids[:tokens])
    return Arm(file.name, "llama.cpp", run)


def measure(settings: Settings) -> dict[str, Any]:
    """Loads, warms up and runs all arms; returns their times and what they ran on."""
    prepare_process(settings.threads)
    files = find_model(settings.model)
    models = {
        f"d3 {quantization or settings.dtype}": load_model(
            files, dtype=settings.dtype, quantization=quantization, device="cpu"
        )
        for quantization in (None, *settings.quantizations)
    }
    first = next(iter(models.values()))
    config = first.causal_lm.config
    ids = np.random.default_rng(0).integers(100, config.vocab_size - 100, PROMPT + REPLY).tolist()
    document = Document(ids[:PROMPT], ids[PROMPT:])
    threads = torch.get_num_threads()
    arms = list(hf_arms(plain_model(files, first.causal_lm.dtype), document, settings))
    for group, model in models.items():
        arms.append(gemv_arm(group, model, settings.tokens))
        decaying = model is first or model.weight_bytes.is_nested
        arms += d3_arms(group, model, document, settings.tokens, decaying=decaying)
    arms += [llama_arm(file, document, settings.tokens, threads) for file in settings.llama_files]
    arms, failed = warmed_up(arms)
    load_before, before = os.getloadavg(), read_bandwidth(CPU)
    for number in range(settings.rounds):
        for arm in (*arms, *reversed(arms)):
            arm.seconds.append(arm.run())
        print(f"  round {number + 1} of {settings.rounds}", file=sys.stderr)
    return {
        "model": "demo" if files.builtin else shape_of(config) or first.name,
        "machine": {"processor": processor_name(), "system": system()},
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": versions() | {"llama-cpp-python": installed_version()},
        "threads": threads,
        "layers": first.num_layers,
        "kernels": {group: kernels_used(model.causal_lm) for group, model in models.items()},
        "bandwidth": [before, read_bandwidth(CPU)],
        "load": [load_before, os.getloadavg()],
        "peak_bytes": peak_memory(CPU),
        "notes": [
            f"{group}: {spelled(note)}" for group, model in models.items() for note in model.notes
        ],
        "failed": failed,
        "arms": [
            {name: value for name, value in vars(arm).items() if name != "run"} for arm in arms
        ],
    }


def warmed_up(arms: Sequence[Arm]) -> tuple[list[Arm], list[str]]:
    """Runs each arm once, untimed; returns those that work, and why the others do not.

    Raises:
        Exception: an arm of d3 does not work.
    """
    working, failed = [], []
    for arm in arms:
        try:
            arm.run()
        except Exception as error:
            if arm.group.startswith("d3"):
                raise
            failed.append(f"{arm.name}: {str(error).partition(chr(10))[0][:200]}")
        else:
            working.append(arm)
    return working, failed
