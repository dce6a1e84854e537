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
