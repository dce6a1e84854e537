"""Plots and charts as plain objects for plotly.js, in the colours of the light theme."""

from collections.abc import Sequence
from typing import Any

# The light theme. The page's script replaces these colours in the dark theme.
INK, QUIET, LINE = "#1c2430", "#5b6675", "#dde2e9"
BLUE, AMBER, VIOLET, GREEN, EMPTY = "#2f6fd0", "#c77d0a", "#8453c5", "#2a8a64", "#eceff3"
PALE, PALER = "#7ea7e6", "#b7cff4"  # of blue: layers without low planes


def line(
    name: str, steps: Sequence[float], values: Sequence[Any], colour: str, shape: str
) -> dict[str, Any]:
    """A line through the values of some steps, which are its labels."""
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


def points(
    name: str,
    steps: Sequence[int],
    values: Sequence[Any],
    colour: str,
    symbol: str,
    x: Sequence[float] | None = None,
) -> dict[str, Any]:
    """A point for each of some steps, which are its labels."""
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


def bar(
    name: str, x: Sequence[Any], values: Sequence[float], colour: str, labels: Sequence[str]
) -> dict[str, Any]:
    """Bars with a label each, in HTML as plotly.js interprets it."""
    return {
        "type": "bar",
        "name": name,
        "x": list(x),
        "y": list(values),
        "marker": {"color": colour},
        "text": list(labels),
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }


def chart(
    name: str,
    title: str,
    note: str,
    traces: list[dict[str, Any]],
    *,
    x: str,
    y: str,
    height: int = 300,
) -> dict[str, Any]:
    """Plots in one box, with titles."""
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
