"""``python -m d3cli`` and the ``d3`` command."""

import os
import sys
from contextlib import suppress

from d3cli.base.launch import launched
from d3cli.cli import signals
from d3cli.cli.terminal import settle_terminal


def main() -> None:
    """Runs the command line and exits with its code."""
    settle_terminal()
    signals.exit_at_once()  # before the imports below, which are slow
    if (launch := launched()) is not None:
        from d3cli.cli import ranks

        if launch.rank > 0:
            ranks.follow(launch)
        signals.before_exit = ranks.on_signal
    from d3cli.cli.app import run

    code = run(sys.argv[1:])
    if launch is not None:
        code = ranks.finish(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # gone, closed or missing
            stream.flush()
    # Python's normal exit forgets our signal handlers and tears torch down, which is slow.
    os._exit(code)


if __name__ == "__main__":
    main()
