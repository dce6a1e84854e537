"""A trace as one HTML file that opens anywhere: charts by plotly.js, bundled, and a table.

Whatever a trace holds is text here: the template escapes it, the data stand in a block that is
never run, and a content security policy names the two scripts that may run by their hashes and
forbids every request. No torch.
"""

import html
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from d3cli import trace_words
from d3cli.inert import inert, quoted
from d3cli.trace import ReplyTrace, TokenTrace, Trace
from d3cli.trace_summary import Stretch, Summary, summarize
from d3cli.units import parse_unit

# The light theme; the page's script exchanges these for the dark ones.
INK, QUIET, LINE = "#1c2430", "#5b6675", "#dde2e9"
BLUE, AMBER, VIOLET, GREEN, EMPTY = "#2f6fd0", "#c77d0a", "#8453c5", "#2a8a64", "#eceff3"
# What a cell of the heat map says, by its value.
SKIPPED, NO_MLP, NO_ATTENTION, RUN = range(4)
STATES = ("skipped", "MLP dropped", "attention dropped", "run")
STATE_COLOURS = (EMPTY, AMBER, VIOLET, BLUE)
FEWEST_TOKENS = 2  # of a reply that has charts
MOST_CELLS = 1_000_000  # of the heat map: a browser holds a label for each


def html_report(trace: Trace) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=PackageLoader("d3cli", "report"), autoescape=True)
    loader = environment.loader
    assert loader is not None
    style = loader.get_source(environment, "report.css")[0]
    script = loader.get_source(environment, "report.js")[0]
    plotly: str = get_plotlyjs()
    total = summarize(trace, trace.replies)
    replies = [_reply(trace, reply) for reply in trace.replies]
    return environment.get_template("report.html.jinja").render(
        title=inert(f"d3 profile: {trace.model.name}"),
        policy="default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; "
        f"style-src 'unsafe-inline'; script-src {_hash(plotly)} {_hash(script)}",
        style=Markup(style),  # noqa: S704 - our own file
        plotly=Markup(plotly),  # noqa: S704 - plotly's
        script=Markup(script),  # noqa: S704 - our own file
        head=[(name, inert(text)) for name, text in _head(trace)],
        foot=[(name, inert(text)) for name, text in _foot(trace)],
        tiles=list(_tiles(total, trace.replies)),
        words=[inert(one) for one in trace_words.sentences(total, trace, trace.replies)],
        interrupted=trace.interrupted,
        states=list(zip(STATES, STATE_COLOURS, strict=True)),
        replies=replies,
        data=_data([reply["data"] for reply in replies]),
    )


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _data(value: object) -> Markup:
    """JSON for a script block: no character of it can end the block."""
    text = json.dumps(value, allow_nan=False)  # ASCII
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - see above


def _head(trace: Trace) -> list[tuple[str, str]]:
    rows = [("depth", trace_words.schedule(trace)), ("sampling", trace_words.sampling(trace))]
    rows.append(("machine", trace_words.machine(trace)))
    return [("model", trace_words.title(trace)), *rows, ("made", trace.created)]


def _foot(trace: Trace) -> list[tuple[str, str]]:
    model = trace.model
    rows = [
        ("versions", trace_words.versions(trace)),
        ("model type", model.model_type),
        ("fingerprint", model.fingerprint or "none: not from files"),
        ("revision", model.revision or ""),
        ("weights", f"{model.weight_bytes.total / 1e6:,.1f} MB read a step at full depth"),
        ("peak memory", f"{trace.peak_memory_bytes / 1e9:.2f} GB"),
        ("schedule", json.dumps(trace.schedule)),
        ("options", trace_words.options(trace)),
        ("needed along", " ".join(trace.needed_order or ())),
    ]
    return [row for row in rows if row[1]]


def _tiles(total: Summary, replies: Sequence[ReplyTrace]) -> Iterator[tuple[str, str, str]]:
    """A name, a figure and what is said under it."""
    if total.tokens_per_second is not None:
        sd = total.tokens_per_second.sd
        yield (
            "tokens a second",
            f"{total.tokens_per_second.mean:.1f}",
            f"TPOT {total.tpot_ms:.1f} ms" + ("" if sd is None else f", ± {sd:.1f} tok/s"),
        )
    if total.ttft_s is not None:
        yield "TTFT", f"{total.ttft_s.mean:.3f} s", f"prompt of {total.prompt_tokens:,} tokens"
    clocks = [reply.clock for reply in replies if reply.clock is not None]
    if len(clocks) == 1:
        low, high = clocks[0].low, clocks[0].high
        yield "faster by the clock", f"{clocks[0].ratio:.2f}×", f"{low:.2f} to {high:.2f}"
    if total.layer_ratio is not None and total.byte_ratio is not None:
        yield (
            "fewer layers",
            f"{total.layer_ratio:.2f}×",
            f"{total.mean_depth:.1f} a token, {total.min_depth:.4g} at least",
        )
        yield (
            "fewer bytes",
            f"{total.byte_ratio:.2f}×",
            f"{total.byte_ratio_net:.2f}× net of repair",
        )
    if total.agreement is not None:
        yield "agreement", f"{total.agreement:.1%}", f"of {total.compared:,} below full depth"


def _reply(trace: Trace, reply: ReplyTrace) -> dict[str, Any]:
    """What the template shows of one reply, and the data of its charts."""
    first = inert(reply.prompt.strip().partition("\n")[0])
    summary = summarize(trace, [reply])
    charts = list(_charts(trace, reply, summary))
    columns = _columns(reply)
    return {
        "name": first if len(first) <= 60 else first[:59] + "…",
        "words": [inert(one) for one in trace_words.sentences(summary, trace, [reply])],
        "text": inert("".join(token.text for token in reply.tokens)),
        "prompt": inert(reply.prompt),
        "columns": [title for title, _, _ in columns],
        "rows": [
            [(cell(token), sort(token)) for _, cell, sort in columns] for token in reply.tokens
        ],
        "charts": [(chart["id"], chart["title"], chart["note"]) for chart in charts],
        # plotly.js reads a little HTML in texts, so they are escaped for it, too.
        "data": {"labels": [_label(token) for token in reply.tokens], "charts": charts},
    }


def _label(token: TokenTrace) -> str:
    parts = [
        f"token {token.step}: {html.escape(quoted(token.text), quote=False)}",
        f"depth {token.depth:.4g}",
        "prefill" if token.ms is None else f"{token.ms:.1f} ms",
    ]
    if token.full_text is not None:
        choice = html.escape(quoted(token.full_text), quote=False)
        parts.append("full depth agrees" if token.agrees else f"full depth: {choice}")
    if token.needed_depth is not None:
        parts.append(f"needed {token.needed_depth:.4g}")
    return "<br>".join(parts)


def _columns(reply: ReplyTrace) -> list[tuple[str, Any, Any]]:
    """Title, what stands in a cell, and what it is sorted by; those that the reply has."""

    def number(title: str, name: str, form: str) -> tuple[str, Any, Any]:
        return (
            title,
            lambda token: (
                "" if getattr(token, name) is None else format(getattr(token, name), f"z{form}")
            ),
            lambda token: getattr(token, name),
        )

    def choice(token: TokenTrace) -> str:
        if token.full_text is None:
            return ""
        return "same" if token.agrees else quoted(token.full_text)

    columns = [
        number("step", "step", ".0f"),
        ("token", lambda token: quoted(token.text), None),
        number("depth", "depth", ".4g"),
        number("active layers", "active_layers", ".0f"),
        number("ms", "ms", ".2f"),
        number("± ms", "ms_sd", ".2f"),
        number("logprob", "logprob", ".3f"),
        number("entropy", "entropy", ".3f"),
        ("full depth", choice, None),
        number("its logprob", "full_logprob", ".3f"),
        number("KL", "kl", ".4f"),
        number("needed", "needed_depth", ".4g"),
        number("lens", "saturation_layer", ".0f"),
    ]
    return [
        (title, cell, sort or cell)
        for title, cell, sort in columns
        if any(cell(token) for token in reply.tokens)
    ]


def _charts(trace: Trace, reply: ReplyTrace, summary: Summary) -> Iterator[dict[str, Any]]:
    """Charts as plotly.js takes them; a trace's `customdata` are the steps of its points."""
    if len(reply.tokens) < FEWEST_TOKENS:
        return
    yield _heat_map(trace, reply)
    yield _depths(trace, reply, summary)
    yield _latency(reply)
    if any(token.kl is not None for token in reply.tokens):
        yield from _agreement(reply, summary)
    if reply.layers is not None:
        yield _parts(reply)


def cells(trace: Trace, tokens: Sequence[TokenTrace]) -> list[list[int]]:
    """What each layer did for each token, ``[layers][tokens]``, as an index of `STATES`."""
    units = [parse_unit(name) for name in trace.depth_schedule.skip_order]
    columns: dict[int, list[int]] = {}
    for count in {token.dropped_units for token in tokens}:
        column = columns[count] = [RUN] * trace.model.num_layers
        for layer, part in units[:count]:
            mine = SKIPPED if part is None else NO_MLP if part == "mlp" else NO_ATTENTION
            column[layer] = mine if column[layer] == RUN else SKIPPED
    each = [columns[token.dropped_units] for token in tokens]
    return [[column[layer] for column in each] for layer in range(trace.model.num_layers)]


def _heat_map(trace: Trace, reply: ReplyTrace) -> dict[str, Any]:
    layers, last = trace.model.num_layers, len(STATES) - 1
    edges = [(state + end) / len(STATES) for state in range(len(STATES)) for end in (0, 1)]
    scale = [[edge, STATE_COLOURS[at // 2]] for at, edge in enumerate(edges)]
    shown = reply.tokens[: max(1, MOST_CELLS // layers)]
    note = "One column a token, one row a layer, the first layer at the bottom. Hover over a cell."
    if len(shown) < len(reply.tokens):
        note += f" The first {len(shown):,} tokens of {len(reply.tokens):,}."
    return _chart(
        "layers",
        "Which layers ran",
        note,
        [
            {
                "type": "heatmap",
                "x": [token.step for token in shown],
                "y": list(range(layers)),
                "z": cells(trace, shown),
                "zmin": -0.5,
                "zmax": last + 0.5,
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
    traces = [_line("depth given", steps, [token.depth for token in reply.tokens], BLUE, "hv")]
    note = "Layers that each token was given."
    known = [token for token in reply.tokens if token.needed_depth is not None]
    if known:
        steps = [token.step for token in known]
        needed = [token.needed_depth for token in known]
        lens = [token.saturation_layer for token in known]
        traces += [
            _points("needed at constant depth", steps, needed, AMBER, "circle"),
            _mean_line("needed, mean", summary, lambda one: one.needed, AMBER),
            _points("early exit by the logit lens", steps, lens, GREEN, "x-thin-open"),
        ]
        note = (
            "Layers that each token was given, and the least constant depth from which on the "
            "choice is full depth's. A point above the line was given too few."
        )
    chart = _chart("depth", "Depth by position", note, traces, x="token", y="layers")
    chart["layout"]["yaxis"]["range"] = [0, 1.05 * trace.model.num_layers]
    return chart


def _latency(reply: ReplyTrace) -> dict[str, Any]:
    timed = [token for token in reply.tokens if token.ms is not None]
    steps, depths = [token.step for token in timed], [token.depth for token in timed]
    traces = [_points("a token", steps, [token.ms for token in timed], BLUE, "circle", depths)]
    note = "Milliseconds of each decode step. If the clock follows the depth, they lie on a line."
    if reply.clock is not None:
        note += (
            f" In turn with full depth on the same tokens: {reply.clock.full_ms:.2f} ms at full "
            f"depth, {reply.clock.own_ms:.2f} ms at the reply's own."
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
        "The share of tokens whose first choice is full depth's, by stretch of the reply.",
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
        "KL(full depth || D³) of each token, in nats, and its mean by stretch.",
        [
            _points("a token", steps, values, VIOLET, "circle"),
            _mean_line("mean", summary, lambda one: one.kl, INK),
        ],
        x="token",
        y="nats",
    )


def _parts(reply: ReplyTrace) -> dict[str, Any]:
    found = reply.layers
    assert found is not None
    names = [*map(str, range(len(found.layers))), "LM head", "else"]

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
        f"Milliseconds of a decode step at full depth, medians of {found.steps} steps.",
        [
            bar("attention", [one.attn for one in found.layers], BLUE),
            bar("MLP", [one.mlp or 0.0 for one in found.layers], AMBER),
            bar(
                "rest",
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
    """A mean by stretch of the reply."""
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
