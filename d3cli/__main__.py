"""``python -m d3cli`` and the ``d3`` command."""

import sys

from d3cli.cli import signals


def main() -> None:
    """Runs the command line and exits with its code."""
    signals.exit_at_once()  # before the imports below, which take their time
    from d3cli.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
