"""``python -m d3cli`` and the ``d3`` command."""

import os
import sys
from contextlib import suppress

from d3cli.cli import signals


def main() -> None:
    """Runs the command line and exits with its code."""
    signals.exit_at_once()  # before the imports below, which take their time
    from d3cli.cli.app import run

    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # gone, closed, or never there
            stream.flush()
    # Python's own way out forgets our signal handlers and takes torch apart, which is slow.
    os._exit(code)


if __name__ == "__main__":
    main()
