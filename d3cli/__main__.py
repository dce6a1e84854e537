"""``python -m d3cli`` and the ``d3`` command."""

import sys

from d3cli.cli.app import run


def main() -> None:
    """Runs the command line and exits with its code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
