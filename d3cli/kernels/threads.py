"""How many CPU threads to compute with.

One for each physical core that this process may use. After each product, all threads wait for the
slowest one. On a machine that is busy with other work, fewer threads can therefore be faster: a
short probe decides.
"""

import os
import time
from collections.abc import Sequence
from statistics import median

import psutil
import torch

from d3cli.base.cgroups import own_groups

BUSY = 0.5  # the load average of the last minute from which the probe is worth its time
PROBE_BYTES, ROUNDS = 64 << 20, 5
GAIN = 1.1  # fewer threads must be this many times as fast


def pick_threads() -> tuple[int, str]:
    """The number of threads to use, and the reason if it is less than the number of usable cores.

    ``OMP_NUM_THREADS`` in the environment takes precedence.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads(), ""
    cores = usable_cores()
    if cores == 1 or psutil.getloadavg()[0] < BUSY:
        return cores, ""
    chosen = fastest(sorted({cores, cores - 1, cores // 2}, reverse=True))
    if chosen == cores:
        return cores, ""
    return chosen, f"this machine is busy: d3 uses {chosen} of {cores} cores"


def usable_cores() -> int:
    """Physical cores that this process may use. A container may limit them."""
    logical = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        logical = len(os.sched_getaffinity(0))
    cores = min(logical, psutil.cpu_count(logical=False) or logical)
    return max(1, min([cores, *_quotas()]))


def _quotas() -> list[int]:
    """The number of whole processors that each limiting control group grants."""
    found = []
    for version, directory in own_groups("cpu"):
        try:
            if version == 2:
                granted, period = (directory / "cpu.max").read_text().split()
            else:
                granted = (directory / "cpu.cfs_quota_us").read_text()
                period = (directory / "cpu.cfs_period_us").read_text()
            if int(granted) > 0:  # no limit: "max" in version 2, -1 in version 1
                found.append(max(1, int(granted) // int(period)))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return found


def fastest(counts: Sequence[int]) -> int:
    """The first of some numbers of threads, unless another reads memory at least 10% faster.

    Leaves torch set to the number chosen.
    """
    data = torch.ones(PROBE_BYTES // 4)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(ROUNDS + 1):
        for count in counts if number % 2 else reversed(counts):
            torch.set_num_threads(count)
            for _ in range(2):  # the first starts and wakes the threads
                began = time.perf_counter()
                data.sum().item()
                took = time.perf_counter() - began
            if number:
                seconds[count].append(took)
    times = {count: median(found) for count, found in seconds.items()}
    best = min(counts, key=lambda count: times[count])
    chosen = best if times[counts[0]] > GAIN * times[best] else counts[0]
    torch.set_num_threads(chosen)
    return chosen
