"""Signals during `d3 profile`."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from d3cli.base.atomic_files import replace_file
from d3cli.profile.profiler import Profiler
from d3cli.profile.run import Run
from d3cli.profile.trace_file import parse_trace, read_trace
from tests.cli.profile.conftest import FAST
from tests.conftest import D3
from tests.processes import d3_process
from tests.traces import (
    STORY,
    SUM,
)


class TestInterruption:
    """A real signal at a random moment, chosen by a seed."""

    @pytest.mark.parametrize(
        ("seed", "number"), list(enumerate([signal.SIGINT, signal.SIGTERM] * 3)), ids=str
    )
    def test_a_signal_leaves_a_valid_trace(
        self, d3: D3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, number: int
    ) -> None:
        moment = random.Random(seed).randrange(1, 60)
        path, seen = tmp_path / "run.json", itertools.count(1)
        tokens = Run.__iter__

        def watched(run: Run) -> Iterator[object]:
            for chunk in tokens(run):
                if next(seen) == moment:
                    os.kill(os.getpid(), number)
                yield chunk

        monkeypatch.setattr(Run, "__iter__", watched)
        result = d3("profile", STORY, *FAST, "--repeat", "4", "--output-file", path)
        assert result.code == 128 + number
        assert result.out == ""
        trace = read_trace(path)
        assert trace.interrupted
        (reply,) = trace.replies
        # Twelve tokens of warm-up, then twelve per repeat. The first repeat with tokens is shown.
        shown = moment if moment <= 12 else min(12, moment - 12)
        assert len(reply.tokens) == shown
        assert len(reply.repeats) == max(1, moment // 12 - 1)

    @pytest.mark.parametrize("step", ["full depth's values", "needed depth", "full depth's time"])
    def test_a_signal_during_the_comparison_keeps_the_reply(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        steps = Profiler.examine

        def watched(profiler: Profiler) -> Iterator[tuple[str, float]]:
            for what, share in steps(profiler):
                if what == step:
                    os.kill(os.getpid(), signal.SIGINT)
                yield what, share

        monkeypatch.setattr(Profiler, "examine", watched)
        result = d3("profile", STORY, *FAST, "--compare", "--needed", "--json")
        assert result.code == 130
        trace = parse_trace(result.out.encode(), "stdout")
        assert trace.interrupted
        assert len(trace.replies[0].tokens) == 12
        assert trace.replies[0].clock is None

    def test_a_signal_waits_until_the_result_is_written(
        self, d3: D3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(path: Path, text: str) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            replace_file(path, text)

        monkeypatch.setattr("d3cli.cli.profile.destination.replace_file", killed)
        path = tmp_path / "run.json"
        assert d3("profile", SUM, *FAST, "--output-file", path).code == 130
        assert not read_trace(path).interrupted

    def test_many_signals_end_a_hanging_process(self, tmp_path: Path) -> None:
        code = (
            "import os, signal, time\n"
            "from d3cli.cli import signals\n"
            "signals.stop_in_order(); signals.stop_once()\n"
            "try:\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "except signals.Stopped:\n"
            "    for _ in range(9): os.kill(os.getpid(), signal.SIGTERM)\n"
            "time.sleep(60)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
        assert done.returncode == 143

    @pytest.mark.slow
    def test_a_signal_to_another_process(self, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        process = d3_process(
            "profile", STORY, "--repeat", "1000", "--core-first", "1", "--threads", "1",
            "--output-file", str(path),
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if b"has no effect" in line:  # said when the model is loaded
                break

        def computed() -> float:
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
            return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

        began = computed()
        while computed() < began + 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        trace = read_trace(path)
        assert trace.interrupted
        assert trace.replies[0].tokens
