"""Names of files as a user types them in a chat."""

import shlex
from pathlib import Path

from d3cli.base.errors import UsageError


def typed_path(argument: str) -> Path:
    """A file name, which may be quoted.

    Raises:
        UsageError: it cannot be read as one.
    """
    try:
        words = shlex.split(argument)
        name = words[0] if len(words) == 1 else argument
        return Path(name).expanduser()
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{argument} is not a file name: {error}", "check the quotes") from error


def target_of(path: Path) -> tuple[Path, bool]:
    """Where a file is to be written, with links followed; and whether something is there.

    Raises:
        UsageError: no file can have this name, or its directory is missing.
    """
    is_there = True
    try:
        target = path.resolve()
        has_directory = target.parent.is_dir()
        target.stat()
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be written: {reason}", "give another name") from error
    if not has_directory:
        raise UsageError(f"there is no directory {target.parent}", "create it first")
    return target, is_there
