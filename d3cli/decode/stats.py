"""Figures of one reply: counts, times, depths, memory. Knows nothing of how they are measured."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class RunStats:
    """Figures of one reply of N tokens.

    Attributes:
        prompt_tokens, completion_tokens: token counts; the end token counts.
        ttft_s: seconds from the request to the first token; None without a token.
        decode_s: seconds of the decode steps ``1 .. N - 1``.
        tokens_per_second, mean_depth, min_depth: over the decode steps; None without one.
        layer_ratio, byte_ratio: full depth over this reply, in layers and in bytes of weights, over
            the decode steps; None without one. The KV cache and a later repair are not counted.
        full_bits, bits, min_bits: bits read for each weight of the layers: at full depth, on
            average and at least; None without a decode step, or if the weights are not nested.
        peak_memory_bytes: see `peak_memory`.
        seed: None if sampling was greedy.
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
    full_bits: float | None
    bits: float | None
    min_bits: float | None
    peak_memory_bytes: int
    seed: int | None


def peak_memory(device: torch.device) -> int:
    """The most bytes that the process has held at once; on a GPU, that torch has held there."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # getrusage also counts what the parent process held when it forked.
        with suppress(OSError, LookupError, ValueError):  # some containers hide it
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("VmHWM:")[1].split()[0])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on BSDs
