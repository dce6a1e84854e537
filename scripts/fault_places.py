"""Places with little room, for ``scripts/faults.py``: file systems and control groups."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fault_runs import ImpossibleError


@contextmanager
def small_file_system(size: int) -> Iterator[Path]:
    """A file system of so many bytes, in memory.

    Raises:
        ImpossibleError: this user may not mount one.
    """
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True).returncode:
            raise ImpossibleError("this user may not mount a file system")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def memory_group(most: int) -> Iterator[str]:
    """The directory of a control group whose processes have so many bytes of memory.

    Raises:
        ImpossibleError: it cannot be made.
    """
    groups = Path("/sys/fs/cgroup")
    version_2 = (groups / "cgroup.controllers").exists()
    group = groups / ("" if version_2 else "memory") / f"d3-faults-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.max" if version_2 else "memory.limit_in_bytes")
        limit.write_text(str(most))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        raise ImpossibleError(f"a control group cannot be made: {error}") from None
    try:
        yield str(group)
    finally:
        group.rmdir()
