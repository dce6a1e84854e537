"""`d3` in a process of its own."""

import os
import subprocess
import sys


def d3_process(*arguments: str, **options: object) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("env", {})  # type: ignore[operator]
    return subprocess.Popen(
        [sys.executable, "-m", "d3cli", *arguments],
        env=environment,
        **{"stdin": subprocess.DEVNULL, "stdout": -1, "stderr": -1} | options,
    )
