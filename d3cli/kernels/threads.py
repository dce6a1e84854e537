"""How many CPU threads to compute with.

One for each physical core that this process may use. After each product, all threads wait for the
slowest one. While other programs run, fewer threads can therefore be many times as fast: more are
used only if a short probe finds them clearly faster.
"""

import os
import time
from collections.abc import Sequence
from statistics import median

import psutil
import torch

from d3cli.base.cgroups import own_groups

BUSY = 0.5  # of a core: what other programs may use before this machine counts as busy
LOOK_S = 0.1  # how long to look at what they use
# The probe reads parts of the size of a weight. After each, all threads wait for the slowest.
PROBE_BYTES, PART_BYTES, ROUNDS, LIMIT_S = 16 << 20, 1 << 20, 5, 1.0
GAIN = 1.3  # more threads must be this many times as fast


def pick_threads() -> tuple[int, str]:
    """The number of threads to use, and the reason if it is less than the number of usable cores.

    ``OMP_NUM_THREADS`` in the environment takes precedence.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads(), ""
    cores = usable_cores()
    # The load average costs nothing, but it stays high for minutes after a job has ended.
    if cores == 1 or psutil.getloadavg()[0] < BUSY or not machine_is_busy():
        return cores, ""
    chosen = fastest(sorted({cores, cores - 1, cores // 2}))
    if chosen == cores:
        return cores, ""
    return chosen, f"this machine is busy: d3 uses {chosen} of {cores} cores"


def machine_is_busy() -> bool:
    """Whether other programs use a core now that this process would use. Looks for 0.1 s."""
    allowed = _allowed()
    begun = time.process_time()
    used = psutil.cpu_percent(LOOK_S, percpu=True)
    # Threads of this process may still wait, awake, for their next product.
    own = (time.process_time() - begun) / LOOK_S
    busy = sum(share for number, share in enumerate(used) if number in allowed) / 100 - own
    return _cores(allowed) - busy <= usable_cores() - BUSY


def usable_cores() -> int:
    """Physical cores that this process may use. A container may limit them."""
    return max(1, min([_cores(_allowed()), *_quotas()]))


def _allowed() -> set[int]:
    """The logical processors on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _cores(allowed: set[int]) -> int:
    """The physical cores among some logical processors."""
    return min(len(allowed), psutil.cpu_count(logical=False) or len(allowed))


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
    """The first of some numbers of threads, unless another reads memory at least 30% faster.

    Leaves torch set to the number chosen.
    """
    parts = torch.ones(PROBE_BYTES // PART_BYTES, PART_BYTES // 4)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    end = time.perf_counter() + LIMIT_S
    for number in range(ROUNDS + 1):
        if number > 1 and time.perf_counter() > end:
            break
        for count in counts if number % 2 else reversed(counts):
            torch.set_num_threads(count)
            for _ in range(2):  # the first starts and wakes the threads
                began = time.perf_counter()
                for part in parts:
                    part.sum()
                took = time.perf_counter() - began
            if number:
                seconds[count].append(took)
    times = {count: median(found) for count, found in seconds.items()}
    best = min(counts, key=lambda count: times[count])
    chosen = best if times[counts[0]] > GAIN * times[best] else counts[0]
    torch.set_num_threads(chosen)
    return chosen
