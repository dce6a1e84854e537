"""The live screen and the report at any width."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from d3cli.base.inert import quoted
from d3cli.cli.format import cut
from d3cli.cli.profile.live import ProfileView
from d3cli.cli.profile.tables import report
from d3cli.profile.trace import Trace
from tests.cli.profile.conftest import CONTROL
from tests.traces import (
    HOSTILE,
    STORY,
    profile,
    prompt,
    whole_trace,
)


class TestView:
    @pytest.mark.parametrize("width", [20, 40, 80, 120])
    def test_wide_and_hostile_tokens_stay_on_their_lines(self, width: int) -> None:
        profiler = profile(max_tokens=len(HOSTILE) + 2)[0]
        model, schedule = profiler.model, profiler.options.schedule
        console = Console(
            file=io.StringIO(), force_terminal=True, width=width, height=30, no_color=True
        )
        view = ProfileView(None, model, schedule, None, 1, 1)
        run = next(iter(profiler.runs(prompt(STORY))))
        view.begin(run, 1)
        for at, _ in enumerate(run):
            run.reply.pieces[-1] = HOSTILE[at % len(HOSTILE)] * (1 + at % 3)
            view.add(run)
        lines = console.render_lines(view._render(console), pad=False)
        for line in lines:
            text = "".join(segment.text for segment in line)
            assert cell_len(text) <= width
            assert not CONTROL.search(text)
        assert len(lines) <= 30

    def test_tokens_are_quoted_and_cut(self) -> None:
        assert quoted(" the") == '" the"'
        assert quoted("\n") == '"\\n"'
        assert quoted("\x1b[31m") == '"␛[31m"'
        assert quoted("e\u0301") == '"e\u0301"'
        assert cut(quoted("日本語" * 20), 10) == '"日本語…"'
        assert cell_len(cut(quoted("日" * 99), 11)) <= 11


def test_a_report_fits_its_width() -> None:
    trace: Trace = whole_trace()
    for width in (20, 40, 80, 200):
        lines = report(trace, width).splitlines()
        assert max(cell_len(line) for line in lines) <= width
