"""`d3 profile` in terminals of many kinds."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.cells import cell_len

from d3cli.cli.progress import Progress
from d3cli.profile.run import Run
from d3cli.profile.trace_file import read_trace
from tests.cli.profile.conftest import FAST
from tests.conftest import D3
from tests.forks import Forks
from tests.terminal import Terminal
from tests.traces import FEW_ROUNDS, STORY, SUM
from tests.warm import Warm

FEW_ROUNDS_BY_NAME = {
    f"d3cli.profile.profiler:{name}": number for name, number in FEW_ROUNDS.items()
}


class Shown(NamedTuple):
    """The bytes written to a terminal, and the exit code."""

    code: int
    raw: str

    @property
    def plain(self) -> str:
        return " ".join(re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.raw).split())

    @property
    def frames(self) -> list[str]:
        """Each drawing of the live screen."""
        drawn = self.raw.split("\x1b[?1049h")[1].split("\x1b[?1049l")[0]
        frames = [frame for frame in drawn.split("\x1b[H") if "step" in frame]
        return [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", frame) for frame in frames]


def written_to(frame: str) -> int:
    """How many tokens a drawing of the live screen has."""
    found = re.search(r"^(\d+) tokens? ", frame, re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.fixture
def shown(forks: Forks, tmp_path: Path) -> Callable[..., Shown]:
    """Runs `d3 profile` in a terminal of a given size; `interrupt` it after that many bytes."""

    def run(
        *arguments: str | Path, columns: int = 100, rows: int = 30, interrupt: int = 0, **env: str
    ) -> Shown:
        env = {"COLUMNS": str(columns), "LINES": str(rows), "TERM": "xterm-256color"} | env
        env["D3_HOME"] = str(tmp_path / "home")
        more = {"signal": signal.SIGINT, "after_out": interrupt} if interrupt else {}
        more |= {"constants": FEW_ROUNDS_BY_NAME, "terminal": True, "env": env}
        ended = forks.run("profile", *arguments, "--threads", "1", **more)
        return Shown(ended.code, ended.err)

    return run


class TestTerminal:
    def test_the_live_table_and_then_the_result(self, shown: Callable[..., Shown]) -> None:
        run = shown(STORY)
        assert run.code == 0
        for frame in run.frames:
            for word in ("token", "layers", "tok/s", "logprob", "entropy", "memory", "processor"):
                assert word in frame
        assert "TTFT" in run.frames[-1] and "█" in run.frames[-1] and "▄" in run.frames[-1]
        assert "ships with this model" in run.plain
        assert run.raw.index("\x1b[?1049l") < run.raw.index("summary")  # after the live screen
        assert "\x1b[?25h" in run.raw  # the cursor is back

    def test_the_screen_shows_the_newest_tokens(self, shown: Callable[..., Shown]) -> None:
        frames = shown(STORY).frames
        assert max(written_to(frame) for frame in frames) > 30  # more than there are rows
        for frame in frames:
            steps = [int(step) for step in re.findall(r'^ +(\d+)  "', frame, re.MULTILINE)]
            newest = written_to(frame) - 1
            assert not steps or steps == list(range(steps[0], newest + 1)), frame

    @pytest.mark.parametrize(("columns", "rows"), [(40, 12), (20, 8), (300, 90)])
    def test_any_size(self, shown: Callable[..., Shown], columns: int, rows: int) -> None:
        run = shown(SUM, columns=columns, rows=rows)
        assert run.code == 0
        assert run.frames
        for frame in run.frames:
            lines = frame.rstrip("\r\n").split("\n")
            assert len(lines) <= rows, frame
            assert max(cell_len(line.rstrip("\r")) for line in lines) <= columns, frame
        assert "summary" in run.plain or columns == 20

    def test_a_dumb_terminal_gets_the_result(self, shown: Callable[..., Shown]) -> None:
        run = shown(SUM, TERM="dumb")
        assert run.code == 0
        assert "\x1b" not in run.raw
        assert "tok/s" in run.plain

    def test_no_color_is_honoured(self, shown: Callable[..., Shown]) -> None:
        run = shown(SUM, NO_COLOR="1")
        assert run.code == 0
        codes = {code for one in re.findall(r"\x1b\[([\d;]*)m", run.raw) for code in one.split(";")}
        assert not {code for code in codes if code[:1] in "349" and len(code) > 1}, codes

    def test_html_needs_a_file(self, shown: Callable[..., Shown]) -> None:
        run = shown(SUM, "-o", "html")
        assert run.code == 2
        assert "a terminal cannot show HTML" in run.plain

    def test_ctrl_c_restores_the_screen(self, shown: Callable[..., Shown], tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        several_frames = 20_000
        run = shown(STORY, "--repeat", "100", "--output-file", path, interrupt=several_frames)
        assert run.code == 130
        assert "\x1b[?1049l" in run.raw
        assert read_trace(path).interrupted
        assert "interrupted" in run.plain

    def test_time_suspended_is_left_out(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        stops, left_out = [2.5, 0.5], list[float]()

        @contextmanager
        def live(_: Progress) -> Iterator[tuple[None, list[float]]]:
            yield None, stops

        monkeypatch.setattr(Progress, "live", live)
        monkeypatch.setattr(Run, "leave_out", lambda _, seconds: left_out.append(seconds))
        assert d3("profile", SUM, *FAST).code == 0
        assert sorted(left_out) == [0.5, 2.5]


@pytest.mark.slow
class TestInteraction:
    """Keys and window changes while the live screen is shown."""

    def test_suspending_restores_the_screen(self, tmp_path: Path) -> None:
        shell = Terminal(
            "--norc", "-i", home=tmp_path, program="/bin/bash", PS1="sh> ", columns=90, rows=24
        )
        try:
            shell.line(f"{sys.executable} -m d3cli profile --threads 1 '{STORY}' --repeat 4")
            shell.wait("repeat 1 of 4")
            shell.send("\x1a")
            shell.wait("Stopped")
            assert shell.raw.rindex("\x1b[?1049l") > shell.raw.rindex("\x1b[?1049h")
            shell.read(0.5)
            shell.line("echo still here; fg")
            shell.wait("summary", 60)
            assert shell.raw.count("\x1b[?1049h") == shell.raw.count("\x1b[?1049l") == 2
        finally:
            shell.close()

    def test_resized_while_it_runs(self, tmp_path: Path, warm: Warm) -> None:
        words = ("profile", "--threads", "1", STORY, "--repeat", "3")
        terminal = Terminal(
            *words,
            home=tmp_path / "home",
            columns=100,
            rows=30,
            warm=warm,
            constants=FEW_ROUNDS_BY_NAME,
        )
        try:
            terminal.wait("tok/s")
            terminal.resize(50, 12)
            terminal.read(1)
            terminal.resize(120, 40)
            assert terminal.end(60) == 0
        finally:
            terminal.close()
