"""Figures of one run: counts, times, depths, memory. Knows nothing of where they come from."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class RunStats:
    """Figures of one reply. Depths and ratios are over the decode steps ``1 .. N - 1``.

    Ratios are None where there was no decode step. `byte_ratio` counts weights only, not the KV
    cache, and not the repair that a later turn pays.
    """

    prompt_tokens: int
    completion_tokens: int
    ttft_s: float | None
    decode_s: float
    tokens_per_second: float | None
    mean_depth: float | None
    min_depth: float | None
    layer_ratio: float | None
    byte_ratio: float | None
    peak_memory_bytes: int
    seed: int | None


def peak_memory(device: torch.device) -> int:
    """Most bytes that the process held at once; on a GPU, that torch held there."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # getrusage counts what the parent held when it forked, too.
        with suppress(OSError, LookupError, ValueError):  # some containers do not say
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("VmHWM:")[1].split()[0])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB on BSDs
