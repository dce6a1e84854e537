"""``d3-lm-eval`` in a child of `tests.forks`."""

import signal
import sys


def run(*options: str) -> None:
    """Runs lm-evaluation-harness with the model "d3", and with Ctrl-C as Python handles it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["d3-lm-eval", "--model", "d3", *options]
    from d3cli.evals.__main__ import main

    main()
