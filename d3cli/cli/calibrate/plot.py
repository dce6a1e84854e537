"""What a calibration tried, as a plot in characters: the drop against the speed."""

import math
from typing import TYPE_CHECKING

from d3cli.base.amounts import signed_percent

if TYPE_CHECKING:
    from d3cli.calibrate.result import Outcome
    from d3cli.calibrate.settings import CalibrationSettings

HEIGHT, MAX_WIDTH, MIN_WIDTH = 14, 72, 20  # of the plot, in characters
MARGIN = 36  # for the labels of both axes
MARKERS = (
    (None, False, "+"),
    ("layer", False, "o"),
    ("sublayer", False, "x"),
    ("layer", True, "@"),
    ("sublayer", True, "*"),
    ("plane", False, "."),
    ("plane", True, ":"),
    ("mixed", False, "m"),
)


def plot(outcome: "Outcome", settings: "CalibrationSettings", width: int) -> str:
    """The drop of every schedule tried against its speed; empty where it cannot be drawn."""
    import plotille

    tried = list(outcome.tried.values())
    if not tried or width < MIN_WIDTH + MARGIN:
        return ""
    speeds = [t.candidate.speed for t in tried]
    highest = max(2 * settings.target_drop, *(t.drop.value for t in tried if t.drop.value < 10))
    figure = plotille.Figure()
    figure.with_colors = False
    figure.width, figure.height = min(width - MARGIN, MAX_WIDTH), HEIGHT
    figure.x_label, figure.y_label = "speed, net", "drop"
    figure.set_x_limits(min(speeds), max([*speeds, min(speeds) + 0.01]))
    figure.set_y_limits(min(0.0, *(t.drop.value for t in tried)), highest)
    figure.x_ticks_fkt = lambda value, _: f"{value:.2f}×"
    figure.y_ticks_fkt = lambda value, _: signed_percent(value)
    figure.plot([min(speeds), max(speeds)], [settings.target_drop] * 2)
    for kind, by_prompt, marker in MARKERS:
        points = [
            t
            for t in tried
            if (t.candidate.kind, t.candidate.by_prompt) == (kind, by_prompt)
            and math.isfinite(t.drop.value)
        ]
        figure.scatter(
            [t.candidate.speed for t in points], [t.drop.value for t in points], marker=marker
        )
    legend = "o whole layers, x sublayers"
    if outcome.forms:
        legend += ", . low planes, m mixed units, + full depth in each form of the weights"
    if any(t.candidate.by_prompt for t in tried):
        legend += ", @ and * the same in each prompt's own order"
    legend += " (search half); the line is the target"
    if outcome.chosen is not None:
        figure.scatter([outcome.chosen.candidate.speed], [outcome.chosen.drop.value], marker="#")
        legend += "; # the chosen schedule on unseen text"
    return f"{figure.show()}\n{legend}"
