"""What each layer did for each token, and how a terminal draws it."""

import json
import re
from dataclasses import replace

from d3cli.cli.profile.heat_map import heat_map
from d3cli.cli.profile.tables import layers_table
from d3cli.depth.schedule import DepthSchedule
from d3cli.profile.cells import Cell, cells, kinds_of
from d3cli.profile.html.page import html_report
from d3cli.profile.summary import summarize
from d3cli.profile.trace import Trace
from d3cli.profile.trace_file import parse_trace, to_json
from d3cli.profile.trace_times import LayersTrace, LayerTime
from tests.traces import made_trace, nested_trace, whole_trace


def test_what_each_layer_did() -> None:
    trace = whole_trace()
    reply = trace.replies[0]
    table = cells(trace, reply, reply.tokens)
    assert (len(table), {len(row) for row in table}) == (16, {len(reply.tokens)})
    for at, token in enumerate(reply.tokens):
        column = [row[at] for row in table]
        assert sum(state != Cell.SKIPPED for state in column) == token.active_layers
        assert sum(state == Cell.RUN for state in column) == token.depth  # whole layers


def test_dropped_sublayers_have_their_own_states() -> None:
    order = ("1.attn", "2.mlp", "1.mlp")
    schedule = DepthSchedule(4, 0.5, 0, 1, 1, order, (0.4, 0.6, 0.6))
    made = made_trace([4, 4 - 0.4, 4 - 1.0, 4 - 1.6], [1.0, 1.0, 1.0])
    tokens = tuple(
        replace(token, dropped_units=count, bytes_read=read)
        for count, (token, read) in enumerate(
            zip(made.replies[0].tokens, (60, 56, 50, 44), strict=True)
        )
    )
    reply = replace(made.replies[0], tokens=tokens)
    trace = replace(made, schedule=schedule.to_json(), replies=(reply,))
    run, no_attention, no_mlp, skipped = Cell.RUN, Cell.NO_ATTENTION, Cell.NO_MLP, Cell.SKIPPED
    assert cells(trace, reply, reply.tokens) == [
        [run] * 4,
        [run, no_attention, no_attention, skipped],
        [run, run, no_mlp, no_mlp],
        [run] * 4,
    ]


def test_dropped_planes_have_their_own_shades() -> None:
    trace = nested_trace()
    [reply] = trace.replies
    run, one, low, no_mlp = Cell.RUN, Cell.ONE_LOW_PLANE, Cell.NO_LOW_PLANES, Cell.NO_MLP
    assert cells(trace, reply, reply.tokens) == [
        [run, one, one, one, one, one],
        [run, run, one, low, no_mlp, no_mlp],
        [run, run, run, run, run, Cell.SKIPPED],
        [run] * 6,
    ]
    assert kinds_of(trace) == list(Cell)
    assert low not in kinds_of(whole_trace())


def test_the_heat_map_of_a_terminal_has_a_line_per_layer() -> None:
    trace = nested_trace()
    lines = heat_map(trace, trace.replies[0], 80).splitlines()
    assert lines[:5] == [
        "     3 ██████",
        "     2 █████·",
        "     1 ██▓▒mm",
        "     0 █▓▓▓▓▓",
        " token 0    5",
    ]
    assert (
        lines[5].strip().startswith("█ run, ▓ without one low plane, ▒ without low planes, m MLP")
    )


def test_a_narrow_heat_map_shows_every_nth_token() -> None:
    trace = whole_trace()
    [reply] = trace.replies[:1]
    lines = heat_map(trace, reply, 20).splitlines()
    assert all(len(line) <= 20 for line in lines)
    each = -(-len(reply.tokens) // 12)
    assert f"a column is {each} tokens" in " ".join(line.strip() for line in lines[17:])


def test_a_reply_at_full_depth_has_no_heat_map() -> None:
    made = made_trace([4.0, 4.0], [1.0])
    assert heat_map(made, made.replies[0], 80) == ""


def test_bits_are_those_that_the_layers_read() -> None:
    trace = nested_trace()
    found = summarize(trace, trace.replies)
    assert (found.full_bits, found.min_bits) == (8 * 40 / 80, 8 * (40 - 3 - 1 - 3 - 3 - 10) / 80)
    reads = [37, 36, 33, 30, 20]
    assert found.bits == 8 * sum(reads) / 5 / 80
    assert summarize(whole_trace(), whole_trace().replies).bits is None
    assert "4.0 → 2.0" in html_report(trace)


def test_a_trace_keeps_the_bytes_of_its_planes() -> None:
    trace = nested_trace()
    assert parse_trace(json.dumps(to_json(trace)).encode(), "it") == trace


def layers_of(trace: Trace) -> list[list[str]]:
    """The table of layers of a trace, as words; the title of a column is one word."""
    times = LayersTrace(
        steps=3, layers=(LayerTime(attn=1, mlp=2, other=0.5),) * 4, head_ms=1, rest_ms=1
    )
    reply = replace(trace.replies[0], layers=times)
    lines = layers_table(replace(trace, replies=(reply,)), reply, 100).splitlines()
    titles = re.split(r" {2,}", lines[0].strip())
    return [titles, *(line.split() for line in lines[2:6])]


def test_the_layers_of_nested_weights_name_the_megabytes_of_their_low_planes() -> None:
    made = nested_trace(scale=10**6)
    titles, *rows = layers_of(made)
    at = titles.index("low MB")
    assert titles[at - 2 : at + 2] == ["attn MB", "MLP MB", "low MB", "GB/s"]
    assert [row[at] for row in rows] == ["4.00"] * 4
    assert [row[at - 2 : at] for row in rows] == [["4.00", "6.00"]] * 4


def test_other_weights_have_no_such_column() -> None:
    titles, *_ = layers_of(made_trace([4, 4], [1.0]))
    assert titles[-2:] == ["MLP MB", "GB/s"]
