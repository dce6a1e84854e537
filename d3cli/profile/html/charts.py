"""The charts of the HTML report as plain objects for plotly.js.

Knows nothing of pages or of how a chart is drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from d3cli.profile.cells import Cell, cells
from d3cli.profile.summary import Stretch, Summary
from d3cli.profile.trace import ReplyTrace, Trace

# The light theme. The page's script replaces these colours in the dark theme.
INK, QUIET, LINE = "#1c2430", "#5b6675", "#dde2e9"
BLUE, AMBER, VIOLET, GREEN, EMPTY = "#2f6fd0", "#c77d0a", "#8453c5", "#2a8a64", "#eceff3"
PALE, PALER = "#7ea7e6", "#b7cff4"  # of blue: layers without low planes
CELL_COLOURS = (EMPTY, AMBER, VIOLET, PALER, PALE, BLUE)  # of the heat map, by `Cell`
FEWEST_TOKENS = 2  # a shorter reply has no charts
MOST_CELLS = 1_000_000  # in the heat map; a browser holds a label for each


def charts_of(trace: Trace, reply: ReplyTrace, summary: Summary) -> Iterator[dict[str, Any]]:
    """Yields charts for plotly.js; the `customdata` of a plot are the steps of its points."""
    if len(reply.tokens) < FEWEST_TOKENS:
        return
    yield _heat_map(trace, reply)
    yield _depths(trace, reply, summary)
    yield _latency(reply)
    if any(token.kl is not None for token in reply.tokens):
        yield from _agreement(reply, summary)
    if reply.layers is not None:
        yield _parts(reply)


def _heat_map(trace: Trace, reply: ReplyTrace) -> dict[str, Any]:
    layers, kinds = trace.model.num_layers, len(Cell)
    edges = [(kind + end) / kinds for kind in range(kinds) for end in (0, 1)]
    scale = [[edge, CELL_COLOURS[at // 2]] for at, edge in enumerate(edges)]
    shown = reply.tokens[: max(1, MOST_CELLS // layers)]
    note = (
        "One column per token, one row per layer, the first layer at the bottom. Hover over a cell "
        "for details."
    )
    if len(shown) < len(reply.tokens):
        note += f" Only the first {len(shown):,} of {len(reply.tokens):,} tokens are shown."
    return _chart(
        "layers",
        "Which layers ran",
        note,
        [
            {
                "type": "heatmap",
                "x": [token.step for token in shown],
                "y": list(range(layers)),
                "z": cells(trace, reply, shown),
                "zmin": -0.5,
                "zmax": kinds - 0.5,
                "colorscale": scale,
                "showscale": False,
                "xgap": 1 if len(shown) <= 150 else 0,
                "ygap": 1 if layers <= 150 else 0,
                "hovertemplate": "%{text}<extra></extra>",
            }
        ],
        x="token",
        y="layer",
        height=max(240, min(900, 90 + 11 * layers)),
    )


def _depths(trace: Trace, reply: ReplyTrace, summary: Summary) -> dict[str, Any]:
    steps = [token.step for token in reply.tokens]
    traces = [_line("depth used", steps, [token.depth for token in reply.tokens], BLUE, "hv")]
    note = "The layers that each token used."
    known = [token for token in reply.tokens if token.needed_depth is not None]
    if known:
        steps = [token.step for token in known]
        needed = [token.needed_depth for token in known]
        lens = [token.saturation_layer for token in known]
        traces += [
            _points("needed at constant depth", steps, needed, AMBER, "circle"),
            _mean_line("needed, on average", summary, lambda one: one.needed, AMBER),
            _points("early exit by the logit lens", steps, lens, GREEN, "x-thin-open"),
        ]
        note = (
            "The layers that each token used, and the layers that it needed: every constant depth "
            "from there up makes full depth's choice. A point above the line used too few."
        )
    chart = _chart("depth", "Depth by position", note, traces, x="token", y="layers")
    chart["layout"]["yaxis"]["range"] = [0, 1.05 * trace.model.num_layers]
    return chart


def _latency(reply: ReplyTrace) -> dict[str, Any]:
    timed = [token for token in reply.tokens if token.ms is not None]
    steps, depths = [token.step for token in timed], [token.depth for token in timed]
    traces = [_points("token", steps, [token.ms for token in timed], BLUE, "circle", depths)]
    note = "Milliseconds of each decode step. If time follows depth, the points lie on a line."
    if reply.clock is not None:
        note += (
            f" Timed in turn on the same tokens: {reply.clock.full_ms:.2f} ms at full depth, "
            f"{reply.clock.own_ms:.2f} ms at the reply's own depth."
        )
    chart = _chart("latency", "Time against depth", note, traces, x="layers", y="ms")
    chart["layout"]["yaxis"]["rangemode"] = "tozero"
    return chart


def _agreement(reply: ReplyTrace, summary: Summary) -> Iterator[dict[str, Any]]:
    known = [(one, 100 * one.agreement) for one in summary.stretches if one.agreement is not None]
    middles = [(one.begin + one.end - 1) / 2 for one, _ in known]
    shares = [share for _, share in known]
    line = _line("share", middles, shares, BLUE, "linear") | {
        "mode": "lines+markers",
        "customdata": None,
        "hovertemplate": "%{text}<extra></extra>",
        "text": [
            f"tokens {one.begin} to {one.end - 1}: {share:.1f}% of {one.tokens}"
            for one, share in known
        ],
    }
    chart = _chart(
        "agreement",
        "Agreement with full depth",
        "The share of tokens with the same first choice as full depth, by position in the reply.",
        [line],
        x="token",
        y="%",
    )
    chart["layout"]["yaxis"]["range"] = [max(0.0, min(shares, default=0.0) - 5), 101]
    yield chart
    tokens = [token for token in reply.tokens if token.kl is not None]
    values = [max(0.0, token.kl or 0.0) for token in tokens]
    steps = [token.step for token in tokens]
    yield _chart(
        "kl",
        "Divergence from full depth",
        "KL(full depth || D³) of each token in nats, and its mean by position in the reply.",
        [
            _points("token", steps, values, VIOLET, "circle"),
            _mean_line("mean", summary, lambda one: one.kl, INK),
        ],
        x="token",
        y="nats",
    )


def _parts(reply: ReplyTrace) -> dict[str, Any]:
    found = reply.layers
    assert found is not None
    names = [*map(str, range(len(found.layers))), "LM head", "other"]

    def bar(name: str, values: list[float], colour: str) -> dict[str, Any]:
        return {
            "type": "bar",
            "name": name,
            "x": names,
            "y": values,
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}, {name}: %{{y:.3f}} ms<extra></extra>",
        }

    chart = _chart(
        "parts",
        "Time by layer",
        f"Milliseconds of each part of a full-depth decode step, medians of {found.steps} steps.",
        [
            bar("attention", [one.attn for one in found.layers], BLUE),
            bar("MLP", [one.mlp or 0.0 for one in found.layers], AMBER),
            bar(
                "other",
                [*(one.other for one in found.layers), found.head_ms, found.rest_ms],
                GREEN,
            ),
        ],
        x="layer",
        y="ms",
    )
    chart["layout"]["barmode"] = "stack"
    chart["layout"]["xaxis"]["type"] = "category"
    return chart


def _mean_line(
    name: str, summary: Summary, value: Callable[[Stretch], float | None], colour: str
) -> dict[str, Any]:
    """The mean of each stretch of the reply."""
    known = [(one, mean) for one in summary.stretches if (mean := value(one)) is not None]
    middles = [(one.begin + one.end - 1) / 2 for one, _ in known]
    return _line(name, middles, [mean for _, mean in known], colour, "linear") | {
        "customdata": None,
        "hovertemplate": "mean %{y:.4f}<extra></extra>",
    }


def _line(
    name: str, steps: Sequence[float], values: Sequence[Any], colour: str, shape: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(steps),
        "y": list(values),
        "line": {"color": colour, "width": 2, "shape": shape},
        "customdata": list(steps),
        "hovertemplate": "%{text}<extra></extra>",
    }


def _points(
    name: str,
    steps: Sequence[int],
    values: Sequence[Any],
    colour: str,
    symbol: str,
    x: Sequence[float] | None = None,
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(steps if x is None else x),
        "y": list(values),
        "marker": {"color": colour, "size": 6, "symbol": symbol, "opacity": 0.75},
        "customdata": list(steps),
        "hovertemplate": "%{text}<extra></extra>",
    }


def _chart(
    name: str,
    title: str,
    note: str,
    traces: list[dict[str, Any]],
    *,
    x: str,
    y: str,
    height: int = 300,
) -> dict[str, Any]:
    axis = {
        "gridcolor": LINE,
        "linecolor": LINE,
        "zeroline": False,
        "tickfont": {"color": QUIET},
        "automargin": True,
    }
    several = sum("name" in one for one in traces) > 1
    return {
        "id": name,
        "title": title,
        "note": note,
        "height": height,
        "traces": traces,
        "layout": {
            "margin": {"l": 48, "r": 12, "t": 32 if several else 8, "b": 40},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": INK, "size": 12, "family": "system-ui, sans-serif"},
            "showlegend": several,
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
            "dragmode": False,
            "xaxis": axis | {"title": {"text": x, "font": {"color": QUIET}}},
            "yaxis": axis | {"title": {"text": y, "font": {"color": QUIET}}},
        },
    }
