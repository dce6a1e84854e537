"""What this machine has and how fast a model can be on it: the facts behind ``d3 doctor``."""

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import psutil
import torch

from d3cli.base.errors import D3Error
from d3cli.base.hardware import processor_name, system, versions
from d3cli.base.settings import BUILTIN, config_file, default_model
from d3cli.kernels.bnb_linear import quantized_bytes
from d3cli.kernels.plan import LEAST_HEAD
from d3cli.kernels.threads import pick_threads, usable_cores
from d3cli.model.memory import available_memory

PROBE_SECONDS = 1.0
PROBE_BYTES, SMALL_PROBE_BYTES = 1 << 30, 1 << 27  # both beyond most caches
QUESTION, ANSWER = "What is 27 + 45?", "72"
DEPTH = 0.6  # the share of the layers in the second column of expected speeds
# What speeds up bfloat16 and quantized matrices, by torch's names.
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
class Shape:
    """A Llama's dimensions: enough to count the bytes that a decode step reads."""

    name: str
    hidden: int
    inner: int
    layers: int
    kv_size: int
    vocabulary: int

    @property
    def layer_weights(self) -> int:
        attention = 2 * self.hidden * (self.hidden + self.kv_size)
        return attention + 3 * self.hidden * self.inner

    def bytes_read(self, depth: float, *, in_4_bits: bool, on_cpu: bool = True) -> float:
        """Bytes of one step at a share of the layers.

        The LM head is in bfloat16; beside 4-bit layers on a CPU in 8 bits, where it is large.
        """
        weights = self.layer_weights
        layer = quantized_bytes(weights, "bnb-4bit") if in_4_bits else 2 * weights
        head = 2 * self.hidden * self.vocabulary
        if in_4_bits and on_cpu and head >= LEAST_HEAD * (head + self.layers * layer):
            head //= 2
        return depth * self.layers * layer + head


SHAPES = (
    Shape("1B (Llama 3.2)", 2048, 8192, 16, 512, 128256),
    Shape("8B (Llama 3.1)", 4096, 14336, 32, 1024, 128256),
    Shape("70B (Llama 3.3)", 8192, 28672, 80, 1024, 128256),
)


@dataclass(frozen=True, slots=True)
class Speed:
    """The most tokens per second that the bandwidth allows, and whether the weights fit."""

    model: str
    weights: str
    size_bytes: int
    full_depth: float
    depth_0_6: float
    fits: bool


def expected_speeds(bytes_per_second: float, available: int, *, on_cpu: bool) -> list[Speed]:
    """For each shape, in bfloat16 and in 4 bits. No clock can beat it; the KV cache is left out."""
    return [
        Speed(
            model=shape.name,
            weights="4-bit" if in_4_bits else "bfloat16",
            size_bytes=int(full := shape.bytes_read(1, in_4_bits=in_4_bits, on_cpu=on_cpu)),
            full_depth=bytes_per_second / full,
            depth_0_6=bytes_per_second
            / shape.bytes_read(DEPTH, in_4_bits=in_4_bits, on_cpu=on_cpu),
            fits=full < available,
        )
        for shape in SHAPES
        for in_4_bits in (False, True)
    ]


def read_bandwidth(device: torch.device, seconds: float = PROBE_SECONDS) -> float:
    """Bytes per second that all threads (or the GPU) read together: the median of about a second.

    A sum is read as fast as memory allows. Products with matrices come near that only in part.
    """
    size = min(PROBE_BYTES, available_memory(device) // 4)
    try:
        data = torch.ones(size // 4, dtype=torch.float32, device=device)
    except RuntimeError:  # a limit that is not seen, on address space for one
        data = torch.ones(SMALL_PROBE_BYTES // 4, dtype=torch.float32, device=device)
    data.sum().item()  # once to warm up
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begun = time.perf_counter()
        data.sum().item()  # item waits for a GPU
        times.append(time.perf_counter() - begun)
    return data.nbytes / median(times)


def examine() -> dict[str, Any]:
    """Everything that `d3 doctor` reports; takes a few seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(pick_threads()[0])
    available = available_memory(device)
    bandwidth = read_bandwidth(device)
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
            "available_bytes": available_memory(torch.device("cpu")),
        },
        "gpus": _gpus(),
        "read_bandwidth": {"device": device.type, "bytes_per_second": bandwidth},
        "files": {
            "config": str(config_file()),
            "config_exists": config_file().exists(),
            "hub_cache": _hub_cache(),
            "default_model": default_model(),
        },
        "builtin_model": _ask_builtin(),
        "expected": [
            asdict(speed)
            for speed in expected_speeds(bandwidth, available, on_cpu=device.type == "cpu")
        ],
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
    problem = "" if ANSWER in reply.text else f"asked {QUESTION!r}, it said {reply.text!r}"
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
        found.append({"name": name, "total_bytes": total, "free_bytes": free})
    return found


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)
