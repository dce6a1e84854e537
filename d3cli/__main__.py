"""``python -m d3cli`` and the ``d3`` command."""

import os
import sys
from contextlib import suppress

from d3cli.cli import signals

# oneDNN and ideep each keep kernels for the last 1,024 shapes of a matrix product, and each length
# of a prompt is a shape of its own: see docs/reliability.md, "Hours of use".
KERNELS_KEPT = "128"


def bound_kernel_caches() -> None:
    """Has torch keep fewer kernels. Before torch is imported; what the user has set stays."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, KERNELS_KEPT)


def main() -> None:
    """Runs the command line and exits with its code."""
    signals.exit_at_once()  # before the imports below, which take their time
    bound_kernel_caches()
    from d3cli.cli.app import run

    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # gone, closed, or never there
            stream.flush()
    # Python's own way out forgets our signal handlers and takes torch apart, which is slow.
    os._exit(code)


if __name__ == "__main__":
    main()
