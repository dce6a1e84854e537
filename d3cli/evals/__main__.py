"""``d3-lm-eval``: lm-evaluation-harness' own command line, which here knows the model "d3".

The harness looks models up in a registry of its own, and nothing but an import adds to it. So this
registers d3's model, and then runs the harness.
"""

import os
import sys
import traceback

from d3cli.base.errors import D3Error, UsageError
from d3cli.base.inert import inert


def main() -> None:
    """Runs the harness and exits with its code; an error of d3 is one line and a hint."""
    try:
        _run()
    except D3Error as error:
        if os.environ.get("D3_DEBUG"):
            traceback.print_exc()
        hint = f"\n{error.hint}" if error.hint else ""
        sys.stderr.write(inert(f"error: {error.message}{hint}") + "\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    """Raises UsageError if the harness is not installed."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "lm_eval":
            raise
        raise UsageError(
            "lm-evaluation-harness is not installed", 'install it: pip install "d3cli[eval]"'
        ) from error
    import d3cli.evals.harness  # noqa: F401 - registers the model

    cli_evaluate()


if __name__ == "__main__":
    main()
