"""The charts of the HTML report as plain objects for plotly.js.

Knows nothing of pages or of how a chart is drawn.
"""

from collections.abc import Callable, Iterator
from typing import Any

from d3cli.profile.cells import Cell, cells
from d3cli.profile.html import plot
from d3cli.profile.html.lossless_charts import lossless_charts
from d3cli.profile.summary import Stretch, Summary
from d3cli.profile.trace import ReplyTrace, Trace

CELL_COLOURS = (
    plot.EMPTY,
    plot.AMBER,
    plot.VIOLET,
    plot.PALER,
    plot.PALE,
    plot.BLUE,
)  # of the heat map, by `Cell`
FEWEST_TOKENS = 2  # a shorter reply has no charts
MOST_CELLS = 1_000_000  # in the heat map; a browser holds a label for each


def charts_of(trace: Trace, reply: ReplyTrace, summary: Summary) -> Iterator[dict[str, Any]]:
    """Yields charts for plotly.js; the `customdata` of a plot are the steps of its points."""
    if len(reply.tokens) < FEWEST_TOKENS:
        return
    if reply.lossless is not None:
        yield from lossless_charts(reply.lossless)
        if reply.layers is not None:
            yield _parts(reply)
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
    return plot.chart(
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
    traces = [
        plot.line("depth used", steps, [token.depth for token in reply.tokens], plot.BLUE, "hv")
    ]
    note = "The layers that each token used."
    known = [token for token in reply.tokens if token.needed_depth is not None]
    if known:
        steps = [token.step for token in known]
        needed = [token.needed_depth for token in known]
        lens = [token.saturation_layer for token in known]
        traces += [
            plot.points("needed at constant depth", steps, needed, plot.AMBER, "circle"),
            _mean_line("needed, on average", summary, lambda one: one.needed, plot.AMBER),
            plot.points("early exit by the logit lens", steps, lens, plot.GREEN, "x-thin-open"),
        ]
        note = (
            "The layers that each token used, and the layers that it needed: every constant depth "
            "from there up makes full depth's choice. A point above the line used too few."
        )
    chart = plot.chart("depth", "Depth by position", note, traces, x="token", y="layers")
    chart["layout"]["yaxis"]["range"] = [0, 1.05 * trace.model.num_layers]
    return chart


def _latency(reply: ReplyTrace) -> dict[str, Any]:
    timed = [token for token in reply.tokens if token.ms is not None]
    steps, depths = [token.step for token in timed], [token.depth for token in timed]
    traces = [
        plot.points("token", steps, [token.ms for token in timed], plot.BLUE, "circle", depths)
    ]
    note = "Milliseconds of each decode step. If time follows depth, the points lie on a line."
    if reply.clock is not None:
        note += (
            f" Timed in turn on the same tokens: {reply.clock.full_ms:.2f} ms at full depth, "
            f"{reply.clock.own_ms:.2f} ms at the reply's own depth."
        )
    chart = plot.chart("latency", "Time against depth", note, traces, x="layers", y="ms")
    chart["layout"]["yaxis"]["rangemode"] = "tozero"
    return chart


def _agreement(reply: ReplyTrace, summary: Summary) -> Iterator[dict[str, Any]]:
    known = [(one, 100 * one.agreement) for one in summary.stretches if one.agreement is not None]
    middles = [(one.begin + one.end - 1) / 2 for one, _ in known]
    shares = [share for _, share in known]
    line = plot.line("share", middles, shares, plot.BLUE, "linear") | {
        "mode": "lines+markers",
        "customdata": None,
        "hovertemplate": "%{text}<extra></extra>",
        "text": [
            f"tokens {one.begin} to {one.end - 1}: {share:.1f}% of {one.tokens}"
            for one, share in known
        ],
    }
    chart = plot.chart(
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
    yield plot.chart(
        "kl",
        "Divergence from full depth",
        "KL(full depth || D³) of each token in nats, and its mean by position in the reply.",
        [
            plot.points("token", steps, values, plot.VIOLET, "circle"),
            _mean_line("mean", summary, lambda one: one.kl, plot.INK),
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

    chart = plot.chart(
        "parts",
        "Time by layer",
        f"Milliseconds of each part of a full-depth decode step, medians of {found.steps} steps.",
        [
            bar("attention", [one.attn for one in found.layers], plot.BLUE),
            bar("MLP", [one.mlp or 0.0 for one in found.layers], plot.AMBER),
            bar(
                "other",
                [*(one.other for one in found.layers), found.head_ms, found.rest_ms],
                plot.GREEN,
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
    return plot.line(name, middles, [mean for _, mean in known], colour, "linear") | {
        "customdata": None,
        "hovertemplate": "mean %{y:.4f}<extra></extra>",
    }
