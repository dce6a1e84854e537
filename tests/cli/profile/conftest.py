"""What the tests of `d3 profile` share."""

import re
from pathlib import Path

import pytest

from d3cli.cli.output import json_line
from d3cli.profile.summary import with_figures
from tests.traces import (
    FEW_ROUNDS,
    whole_trace,
)

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FAST = ("--max-tokens", "12", "--threads", "1")


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in FEW_ROUNDS.items():
        monkeypatch.setattr(f"d3cli.profile.profiler.{name}", number)


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json_line(with_figures(whole_trace())))
    return path
