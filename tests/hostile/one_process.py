"""Runs many command lines in one forked child, one after the other.

Most hostile inputs take milliseconds once everything is imported. Each command has streams, a home,
a working directory, noted audit events and a peak of memory of its own.
"""

import gc
import io
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.forks import Ended, Forks

# In place of a command line: what reads the choices of kernels, without measuring any.
KERNELS = ("kernels",)

_events: list[str] = []
_wanted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One command line, the directory that it runs in, and its home."""

    arguments: tuple[str, ...]
    folder: str
    home: str


def run_in_one(
    forks: Forks, folder: Path, requests: Mapping[str, Request], audit: tuple[str, ...]
) -> dict[str, Ended]:
    """How each command ended, by its name. Those after one that kills the process are missing."""
    asked, ended = folder / "requests.json", folder / "ended.jsonl"
    asked.write_text(
        json.dumps({name: asdict(request) for name, request in requests.items()}, indent=1)
    )
    whole = forks.call("tests.hostile.one_process.run_each", str(asked), str(ended), *audit)
    found = [json.loads(line) for line in ended.read_text().splitlines()]
    assert whole.code == 0 and len(found) == len(requests), (whole, [*requests][len(found)])
    return {each.pop("name"): Ended(**each | {"seen": tuple(each["seen"])}) for each in found}


def run_each(asked: str, ended: str, *audit: str) -> None:
    """In the child: runs all requests, and appends a line after each."""
    global _wanted
    _wanted = audit
    sys.addaudithook(_note)
    for name, request in json.loads(Path(asked).read_text()).items():
        found = _run(request)
        with Path(ended).open("a") as file:
            file.write(json.dumps({"name": name, **asdict(found)}) + "\n")


def kernels() -> int:
    """Reads the choices of kernels as every load does that measures some, and shows its notes."""
    from d3cli.cli.output import Output
    from d3cli.kernels.choices import choices_here

    os.environ["D3_KERNELS"] = "auto"
    for note in choices_here().notes:
        Output().note(note)
    os.environ["D3_KERNELS"] = "torch"
    return 0


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_wanted):
        _events.append(f"{event} {arguments!r:.300}".encode(errors="replace").decode())


def _run(request: Mapping[str, Any]) -> Ended:
    from d3cli.cli.app import run

    os.environ["D3_HOME"] = request["home"]
    os.chdir(request["folder"])
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    gc.collect()  # what the one before left in cycles
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    _events.clear()
    began = time.monotonic()
    with redirect_stdout(out), redirect_stderr(err):
        code = kernels() if tuple(request["arguments"]) == KERNELS else run(request["arguments"])
    seconds = time.monotonic() - began
    seen = tuple(_events)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return Ended(code, *texts, seconds=seconds, most_resident=int(peak[1]) * 1024, seen=seen)
