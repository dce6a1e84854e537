"""A lock between processes. The system releases it when its holder ends, even by a kill."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d3cli.base.atomic_files import make_directory


@contextmanager
def file_lock(path: Path, patience: float) -> Iterator[None]:
    """Holds the lock of a file, which is made with its directory if it is missing.

    Args:
        patience: how long to wait for another process that holds it, in seconds.

    Raises:
        TimeoutError: another process still holds it.
        OSError: the file cannot be made, or the file system has no locks.
    """
    from filelock import FileLock  # imported by writers only

    make_directory(path.parent)
    # A file that cannot be made, as in /proc, is for filelock one that another process holds.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    lock = FileLock(path, patience, mode=0o600)
    try:
        lock.acquire()
    except NotImplementedError as error:
        raise OSError(errno.ENOSYS, "the file system has no locks") from error
    try:
        yield
    finally:
        lock.release()
