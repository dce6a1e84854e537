"""The control groups of this process, where Linux keeps a container's limits."""

from collections.abc import Iterator
from pathlib import Path

# The groups that this process is in, and the directories with their limits.
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def own_groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Yields version (1 or 2) and directory of each group that may limit this process.

    Inner groups come first. There are none outside Linux.
    """
    try:
        lines = OWN_GROUPS.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, base = 2, GROUPS
        elif controller in controllers.split(","):
            version, base = 1, GROUPS / controller
        else:
            continue
        # The limits of outer groups apply too. In a container, its own group is the root.
        group = base / path.lstrip("/")
        for directory in (group, *group.parents):
            if directory.is_relative_to(base):
                yield version, directory
