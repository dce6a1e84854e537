"""Files that a command is asked to write: where they are, and whether they can be written.

One rule for every command. A file that cannot be used is wrong input, as a file that cannot be read
is, and is refused before anything long begins. Only what fails later, or on a full or broken disk,
is a `WriteError`.
"""

import errno
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from d3cli.base.errors import D3Error, UsageError
from d3cli.cli.output import WriteError

WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
# These are no fault of the name.
FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def target_of(path: Path, another: str = "give another name") -> tuple[Path, bool]:
    """Where a file is to be written, with links followed; and whether something is there.

    Args:
        another: the hint about a name that cannot be used.

    Raises:
        UsageError: no file can have this name, or its directory is missing.
    """
    is_there = True
    try:
        target = path.expanduser().resolve()
        has_directory = target.parent.is_dir()
        target.stat()  # a loop, which resolve() ignores from Python 3.13 on, fails here
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
        raise unwritable(path, error, another) from error
    if not has_directory:
        raise UsageError(f"there is no directory {target.parent}", "create it first")
    return target, is_there


def check_writable(path: Path, target: Path, another: str) -> None:
    """Checks that a regular file, or a new one, can be written in its directory.

    Args:
        path: as the user names it.
        target: where that leads.
        another: the hint about a name that cannot be used.

    Raises:
        UsageError: it cannot.
        WriteError: the disk is full or broken.
    """
    try:
        if target.exists() and not target.stat().st_mode & WRITABLE:
            raise UsageError(f"{path} is read-only", another)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".d3-"):
            pass
    except OSError as error:
        raise unwritable(path, error, another) from error


def is_one_of(target: Path, inputs: Iterable[Path | None]) -> bool:
    """Whether a file is also one that the command reads.

    Raises:
        OSError, RuntimeError: the name of an input leads nowhere.
    """
    return any(each is not None and each.expanduser().resolve() == target for each in inputs)


def unwritable(path: Path, error: Exception, another: str) -> D3Error:
    """The error about a file that cannot be written, by what the system says of it."""
    kind = WriteError if getattr(error, "errno", None) in FAILURES else UsageError
    reason = getattr(error, "strerror", None) or error
    return kind(f"{path} cannot be written: {reason}", another)
