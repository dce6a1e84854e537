"""How much memory of this machine a process may still take, within its limits."""

import re
from pathlib import Path

import psutil

from d3cli.base.cgroups import own_groups


def free_memory() -> int:
    """Bytes that are free now on this machine, within the limits of this process."""
    left = [*_left_in_control_groups(), *_left_of_the_address_space()]
    return min([int(psutil.virtual_memory().available), *left])


def _left_of_the_address_space() -> list[int]:
    """What ``ulimit -v`` leaves; an empty list if there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return []
    return [max(0, most - int(psutil.Process().memory_info().vms))]


def _left_in_control_groups() -> list[int]:
    """What each control group, such as a container's, leaves; an empty list outside Linux.

    Pages of files count against a limit, but the kernel can reclaim them.
    """
    second = ("memory.max", "memory.current", "inactive_file")
    first = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    left = []
    for version, directory in own_groups("memory"):
        left += _left(directory, *(second if version == 2 else first))
    return left


def _left(directory: Path, limit: str, usage: str, reclaimable: str) -> list[int]:
    try:
        allowed = (directory / limit).read_text().strip()
        used = int((directory / usage).read_text())
        statistics = (directory / "memory.stat").read_text()
    except (OSError, ValueError):
        return []
    if not allowed.isdecimal():  # "max"
        return []
    found = re.search(rf"^{reclaimable} (\d+)$", statistics, re.MULTILINE)
    return [max(0, int(allowed) - used + int(found[1] if found else 0))]
