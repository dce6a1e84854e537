"""The charts of a lossless reply: what each pass gave, and what it took."""

import html
from collections.abc import Iterator
from typing import Any

from d3cli.profile.html import plot
from d3cli.profile.trace_lossless import LosslessTrace, PassTrace


def lossless_charts(lossless: LosslessTrace) -> Iterator[dict[str, Any]]:
    """Yields charts for plotly.js."""
    passes, numbers = lossless.passes, range(len(lossless.passes))
    if not passes:
        return
    labels = [_label(number, done) for number, done in enumerate(passes)]
    rejected = plot.bar(
        "thrown away",
        numbers,
        [len(done.draft_ids) - done.accepted for done in passes],
        plot.AMBER,
        labels,
    )
    rejected["marker"]["pattern"] = {"shape": "/"}
    own = [done.tokens - done.accepted for done in passes]
    chart = plot.chart(
        "passes",
        "What each pass gave",
        "Tokens of each pass at full depth: drafted and accepted, chosen by full depth itself, "
        "and, below the line, drafted and thrown away.",
        [
            plot.bar("accepted", numbers, [done.accepted for done in passes], plot.BLUE, labels),
            plot.bar("full depth's own", numbers, own, plot.PALER, labels),
            rejected | {"y": [-count for count in rejected["y"]]},
        ],
        x="pass",
        y="tokens",
    )
    most = max(len(done.draft_ids) - done.accepted for done in passes)
    given = max(done.tokens for done in passes)
    every = max(1, round((most + given) / 8))
    ticks = [*range(-(most // every) * every, 0, every), *range(0, 1 + given, every)]
    chart["layout"]["yaxis"] |= {"tickvals": ticks, "ticktext": [abs(tick) for tick in ticks]}
    chart["layout"] |= {"barmode": "relative", "bargap": 0.1 if len(passes) <= 150 else 0}
    yield chart
    yield _times(passes, labels)


def _times(passes: tuple[PassTrace, ...], labels: list[str]) -> dict[str, Any]:
    rows = [1 + len(done.draft_ids) for done in passes]
    drafted = [at for at, done in enumerate(passes) if done.draft_ids]
    plots = [
        plot.points("pass", [], [done.verify_ms for done in passes], plot.BLUE, "circle", rows)
    ]
    plots[0]["text"] = labels
    if drafted:
        times = [passes[at].draft_ms for at in drafted]
        draft = plot.points(
            "draft", [], times, plot.AMBER, "x-thin-open", [rows[at] for at in drafted]
        )
        plots.append(draft | {"text": [labels[at] for at in drafted]})
    chart = plot.chart(
        "pass-times",
        "Time by the tokens that a pass reads",
        "Milliseconds of each pass, and of the draft before it. A pass reads the last token and "
        "the draft. Drafts pay where a pass over more tokens takes hardly longer than over one.",
        [one | {"customdata": None} for one in plots],
        x="tokens read",
        y="ms",
    )
    chart["layout"]["yaxis"]["rangemode"] = "tozero"
    chart["layout"]["xaxis"]["dtick"] = 1
    return chart


def _label(number: int, done: PassTrace) -> str:
    parts = [f"pass {number}, from token {done.step}"]
    if done.source is None:
        parts.append("a plain step")
    else:
        parts.append(
            f"{html.escape(done.source)} drafted {len(done.draft_ids)}, accepted {done.accepted}"
        )
        parts.append(f"draft {done.draft_ms:.2f} ms")
    return "<br>".join([*parts, f"pass {done.verify_ms:.1f} ms"])
