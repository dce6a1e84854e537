"""The facts behind ``d3 doctor``: what this machine has, and how fast models can be on it."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from types import MappingProxyType
from typing import Any

import psutil
import torch

from d3cli.base.errors import D3Error
from d3cli.base.free_memory import free_memory
from d3cli.base.hardware import processor_name, system, versions
from d3cli.base.settings import BUILTIN, config_file, default_model
from d3cli.cli.doctor.large_model import large_model
from d3cli.cli.doctor.shapes import SHAPES, forms, kernels_of
from d3cli.kernels.choice_file import Wanted, choices_file
from d3cli.kernels.choices import LEAST_MEMORY, choices_here
from d3cli.kernels.measure_nested import SHAPE, measure_nested
from d3cli.kernels.measured_shapes import measured_shapes
from d3cli.kernels.plan import Form, Kernel, plan_kernels
from d3cli.kernels.process import use_threads
from d3cli.kernels.quantization import Quantization
from d3cli.kernels.threads import pick_threads, usable_cores
from d3cli.model.memory import available_memory
from d3cli.model.placement import Room

PROBE_SECONDS = 1.0
PROBE_BYTES, SMALL_PROBE_BYTES = 1 << 30, 1 << 27  # both beyond most caches
QUESTION, ANSWER = "What is 27 + 45?", "72"
DEPTH = 0.6  # the share of the layers that run, in the second column of expected speeds
# The forms of weights whose kernels are measured.
MEASURED: tuple[Quantization | None, ...] = (None, "int8", "int4")
# Processor features that speed up products of bfloat16 and quantized weights, as torch names them.
MATRIX_FEATURES: tuple[str, ...] = (
    "avx2",
    "avx512_f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
)
MATRIX_FEATURES += ("avx512_fp16", "bf16", "i8mm", "sve", "sve2")


@dataclass(frozen=True, slots=True)
class Speed:
    """The most tokens per second to expect, and whether the weights fit."""

    model: str
    weights: str
    size_bytes: int
    full_depth: float
    depth_0_6: float
    fits: bool


def kernels(device: torch.device) -> dict[str, dict[str, str]]:
    """In each form, the kernels of a 1B model's layers and of its LM head, for one token."""
    found = {}
    for name, form in forms(device).items():
        plan = kernels_of(SHAPES[0], form)
        layers = plan.of_linear(SHAPES[0].hidden, SHAPES[0].inner)
        head = plan.head
        if head is Kernel.TORCH_INT8 and choices_here().is_packed(*SHAPES[0].head):
            head = Kernel.ONEDNN_INT8
        found[name] = {"layers": layers.value, "lm_head": head.value}
    return found


def choose_kernels(*, again: bool) -> dict[str, Any]:
    """Measures the kernels of a 1B model's weights in 16, 8 and 4 bits, unless they are known.

    Args:
        again: measures all shapes again that were ever measured on this machine.
    """
    choices, shape = choices_here(), SHAPES[0]
    wanted: list[Wanted] = []
    for quantization in MEASURED:
        form = Form(torch.bfloat16, torch.device("cpu"), quantization)
        plan = plan_kernels(shape.description, shape.head, form, choices.expected)
        wanted += measured_shapes(shape.description, shape.head, plan)
    if again:
        wanted += [record.wanted for record in choices.here.records]
    measured = choices.prepare(wanted, with_float32=True, again=again)
    here = choices.here
    return {
        "file": str(choices_file()),
        "measured": measured,
        "notes": choices.take_notes(),
        "bfloat16_is_fast": here.bfloat16_is_fast,
        "choices": [asdict(choice) for choice in here.choices],
        "rows": [asdict(choice) for choice in here.rows],
        "packing": [asdict(choice) for choice in here.packing],
        "heads": [asdict(choice) for choice in here.heads],
    }


def nested_times(device: torch.device) -> dict[str, float] | None:
    """What nested planes take for one token, as shares of bfloat16's time.

    Returns:
        None on a GPU, or if too little memory is free.
    """
    if device.type != "cpu" or free_memory() < LEAST_MEMORY:
        return None
    return asdict(measure_nested(choices_here().current(*SHAPE)))


def seconds_per_weight(nested: dict[str, float] | None) -> dict[str, float]:
    """How long the kernels of layers take for one weight and one token, by the form of weights.

    The fastest shape counts, since a model's own may be faster than any one that stands for all.

    Args:
        nested: see `nested_times`. Its high plane stands for all weights in 4 bits.
    """
    choices = choices_here().here.choices
    if not choices or nested is None:  # busy, short of memory, or a GPU
        return {}
    fastest = max(choice.gigabytes_per_s for choice in choices)
    seconds = torch.bfloat16.itemsize / (1e9 * fastest)
    shares = {"bfloat16": 1.0, "4-bit": nested["high"], "nested": nested["both"]}
    return {form: share * seconds for form, share in shares.items()}


def expected_speeds(
    bytes_per_second: float,
    available: int,
    device: torch.device,
    per_weight: Mapping[str, float] = MappingProxyType({}),
) -> list[Speed]:
    """An upper bound for each shape in each form but float32. Reading the KV cache is left out.

    Layers take as long as reading them, or as their kernels where these are slower.

    Args:
        per_weight: see `seconds_per_weight`.
    """
    found = []
    for shape in SHAPES:
        for name, form in forms(device).items():
            if name == "float32":
                continue
            full, head = (shape.bytes_read(depth, form) for depth in (1, 0))
            reading = (full - head) / bytes_per_second
            layers = max(reading, per_weight.get(name, 0.0) * shape.layer_weights)
            found.append(
                Speed(
                    model=shape.name,
                    weights=name,
                    size_bytes=int(full),
                    full_depth=1 / (layers + head / bytes_per_second),
                    depth_0_6=1 / (DEPTH * layers + head / bytes_per_second),
                    fits=full < available,
                )
            )
    return found


def read_bandwidth(device: torch.device, seconds: float = PROBE_SECONDS) -> float:
    """Bytes per second that all threads, or the GPU, read together: a median over about a second.

    Measured with a sum, which reads as fast as memory allows. Only some products of matrices come
    near that.
    """
    size = min(PROBE_BYTES, available_memory(device) // 4)
    try:
        data = torch.ones(size // 4, dtype=torch.float32, device=device)
    except RuntimeError:  # a limit that `available_memory` does not know
        data = torch.ones(SMALL_PROBE_BYTES // 4, dtype=torch.float32, device=device)
    data.sum().item()  # once to warm up
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begun = time.perf_counter()
        data.sum().item()  # item waits for a GPU
        times.append(time.perf_counter() - begun)
    return data.nbytes / median(times)


def examine(*, tune: bool = False) -> dict[str, Any]:
    """Everything that ``d3 doctor`` reports. Takes a few seconds.

    Args:
        tune: measures kernels again that were measured before.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_threads(pick_threads()[0])
    available = available_memory(device)
    bandwidth = read_bandwidth(device)
    chosen = choose_kernels(again=tune)
    nested = nested_times(device)
    speeds = expected_speeds(bandwidth, available, device, seconds_per_weight(nested))
    gpus, memory = _gpus(), available_memory(torch.device("cpu"))
    rooms = [Room(gpu["device"], gpu["free_bytes"]) for gpu in gpus]
    return {
        "versions": versions() | {"system": system()},
        "processor": {
            "name": processor_name(),
            "matrix_features": [
                name for name in MATRIX_FEATURES if torch.cpu.get_capabilities().get(name)
            ],
            "physical_cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
            "usable_cores": usable_cores(),
            "threads": torch.get_num_threads(),
        },
        "memory": {
            "total_bytes": psutil.virtual_memory().total,
            "available_bytes": memory,
        },
        "gpus": gpus,
        "read_bandwidth": {"device": device.type, "bytes_per_second": bandwidth},
        "files": {
            "config": str(config_file()),
            "config_exists": config_file().exists(),
            "hub_cache": _hub_cache(),
            "default_model": default_model(),
        },
        "builtin_model": _ask_builtin(),
        "kernels": kernels(device),
        "nested_times": nested,
        "kernel_choices": chosen,
        "expected": [asdict(speed) for speed in speeds],
        "large_model": [asdict(fit) for fit in large_model(rooms, Room("cpu", memory))],
    }


def _ask_builtin() -> dict[str, Any]:
    """Whether the built-in model loads and adds two numbers."""
    from d3cli.decode.sampling import SamplingParams
    from d3cli.decode.session import Engine
    from d3cli.model.load import load_model

    begun = time.perf_counter()
    try:
        model = load_model(BUILTIN, device="cpu")
        reply = Engine(model).stream(
            QUESTION, schedule=model.schedule("off"), sampling=SamplingParams(), max_tokens=100
        )
        for _ in reply:
            pass
    except D3Error as error:
        return {"answers": False, "problem": error.message, "seconds": None}
    problem = "" if ANSWER in reply.text else f"to {QUESTION!r} it answered {reply.text!r}"
    return {
        "answers": not problem,
        "problem": problem or None,
        "seconds": time.perf_counter() - begun,
    }


def _gpus() -> list[dict[str, Any]]:
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        sizes = {"total_bytes": total, "free_bytes": free}
        found.append({"device": f"cuda:{index}", "name": name} | sizes)
    return found


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)
