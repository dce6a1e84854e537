"""``d3 profile --lossless``, and its live screen."""

import io
import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from d3cli.cli.profile.live import ProfileView
from tests.cli.profile.conftest import CONTROL, FAST
from tests.conftest import D3
from tests.traces import DRAFTS, HOSTILE, STORY, always, profile, prompt


def test_a_lossless_run_is_recorded_and_compared_with_plain_decoding(d3: D3) -> None:
    options = ("--lossless", "lookup", "--compare", "--needed", "--dtype", "float32", "--json")
    result = d3("profile", STORY, *options, *FAST)
    assert result.code == 0, result.err
    assert "--needed is left out" in result.err
    trace = json.loads(result.out)
    assert trace["lossless"]["source"] == "lookup"
    assert (trace["schedule"]["skip_order"], trace["schedule"]["source"]) == ([], "off")
    [reply] = trace["replies"]
    assert reply["lossless"]["equality"] == {"replies": 3, "equal": 3, "difference": None}
    assert len(reply["clock"]["ratios"]) == 2
    assert sum(done["tokens"] for done in reply["lossless"]["passes"]) == len(reply["tokens"]) - 1
    assert reply["tokens"][1]["needed_depth"] is None
    assert trace["totals"]["lossless"]["passes"] == len(reply["lossless"]["passes"])


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_the_live_table_shows_what_drafted_each_token(width: int) -> None:
    profiler = profile(max_tokens=30, drafting=always(), schedule=DRAFTS)[0]
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, height=40, no_color=True
    )
    view = ProfileView(None, profiler.model, DRAFTS, 30, 1, 1)
    run = next(iter(profiler.runs(prompt(STORY))))
    view.begin(run, 1)
    for at, _ in enumerate(run):
        run.reply.pieces[-1] = HOSTILE[at % len(HOSTILE)]
        view.add(run)
    lines = [
        "".join(segment.text for segment in line)
        for line in console.render_lines(view._render(console), pad=False)
    ]
    assert all(cell_len(line) <= width and not CONTROL.search(line) for line in lines)
    assert any("source" in line for line in lines)
    marks = "".join("d" if token.drafted_by else "." for token in run.reply.tokens)
    assert marks[-(width - 1) :] in lines
    if width >= 80:
        assert any("lossless: drafted" in line and "tokens a pass" in line for line in lines)
    drafted = sum(token.drafted_by == "depth" for token in run.reply.tokens)
    assert sum(" depth " in line for line in lines) >= min(drafted, 20)
