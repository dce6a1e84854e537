"""Rival policies beside D³, as a table, as a plot in characters, and as JSON."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from d3cli.base.amounts import signed_percent
from d3cli.cli.calibrate.plot import HEIGHT, MARGIN, MAX_WIDTH, MIN_WIDTH
from d3cli.cli.output import Output
from d3cli.depth.calibration_record import form_in_words
from d3cli.depth.policies import Policy

if TYPE_CHECKING:
    from d3cli.calibrate.policies import ComparedPolicies, PolicyAtRatio
    from d3cli.calibrate.result import Judged
    from d3cli.scoring.intervals import Drop

MARKERS = {
    Policy.D3: "#",
    Policy.STATIC: "o",
    Policy.UNIFIED: "u",
    Policy.SKIPDECODE: "s",
    Policy.EARLY_EXIT: "e",
}
TITLES = ("bytes", "policy", "layers", "drop", "against D³", "same top", "its own replies")
# Drops above this are cut off, so that the others can be told apart.
HIGHEST = 2.0
# A rise of perplexity is shown as a factor from here on.
LARGE = 4.0


def write_policies(output: Output, found: "ComparedPolicies") -> None:
    """Writes the table, the notes and the plot to stdout."""
    output.write("\n")
    output.table(TITLES, [_row(row) for row in found.rows], headed=True)
    output.write("\n")
    output.table(("policies", "at equal bytes"), list(_notes(found)))
    if picture := plot(found, output.stdout_width):
        output.write(f"\n{picture}\n")


def _row(row: "PolicyAtRatio") -> tuple[str, ...]:
    judged = row.judged
    replies = ""
    if judged is not None and judged.rise is not None:
        replies = f"{_bounds(judged.rise)}, bytes {row.reply_byte_ratio:.2f}×"
    return (
        f"{row.byte_ratio:.2f}×",
        row.policy.in_words,
        f"{row.schedule.num_layers / row.layer_ratio:.1f}",
        _bounds(row.drop),
        "" if row.against_d3 is None else _bounds(row.against_d3),
        f"{row.same_top:.1%}",
        replies,
    )


def _notes(found: "ComparedPolicies") -> Iterator[tuple[str, str]]:
    yield "compared with", f"full depth in {form_in_words(found.form)}"
    yield "text", f"{found.documents} unseen documents, {found.tokens:,} tokens"
    if found.chosen_ratio is not None:
        yield "chosen", f"D³ at {found.chosen_ratio:.3f}× is the chosen schedule"
    if (full := found.full_depth) is not None:
        yield (
            "replies",
            f"{full.prompts} of each policy; full depth's perplexity on its own is "
            f"{full.perplexity:.3f}",
        )
    for one in found.left_out:
        yield "left out", one


def plot(found: "ComparedPolicies", width: int) -> str:
    """The drop of every policy against its bytes; empty where it cannot be drawn."""
    import plotille

    if not found.rows or width < MIN_WIDTH + MARGIN:
        return ""
    ratios = [row.byte_ratio for row in found.rows]
    drops = [row.drop.value for row in found.rows if row.drop.value <= HIGHEST]
    figure = plotille.Figure()
    figure.with_colors = False
    figure.width, figure.height = min(width - MARGIN, MAX_WIDTH), HEIGHT
    figure.x_label, figure.y_label = "bytes", "drop"
    figure.set_x_limits(min(ratios), max([*ratios, min(ratios) + 0.01]))
    figure.set_y_limits(min([0.0, *drops]), max([*drops, 0.01]))
    figure.x_ticks_fkt = lambda value, _: f"{value:.2f}×"
    figure.y_ticks_fkt = lambda value, _: signed_percent(value)
    for policy, marker in reversed(MARKERS.items()):
        rows = [row for row in found.rows if row.policy is policy and row.drop.value <= HIGHEST]
        figure.scatter(
            [row.byte_ratio for row in rows], [row.drop.value for row in rows], marker=marker
        )
    legend = ", ".join(f"{marker} {policy.in_words}" for policy, marker in MARKERS.items())
    above = sum(row.drop.value > HIGHEST for row in found.rows)
    return f"{figure.show()}\n{legend}" + (
        f"; {above} above {signed_percent(HIGHEST)} are not drawn" * bool(above)
    )


def policies_json(found: "ComparedPolicies") -> dict[str, Any]:
    """The comparison as a plain object; docs/calibration.md documents it."""
    return {
        "form": found.form,
        "chosen_ratio": found.chosen_ratio,
        "documents": found.documents,
        "tokens": found.tokens,
        "rows": [_row_json(row) for row in found.rows],
        "full_depth": None if found.full_depth is None else _judged(found.full_depth),
        "left_out": list(found.left_out),
    }


def _row_json(row: "PolicyAtRatio") -> dict[str, Any]:
    replies = None
    if row.judged is not None:
        replies = _judged(row.judged) | {"byte_ratio": row.reply_byte_ratio}
    return {
        "policy": row.policy,
        "asked_ratio": row.asked,
        "schedule": row.schedule.to_json(),
        "byte_ratio": row.byte_ratio,
        "layer_ratio": row.layer_ratio,
        **_drop(row.drop),
        "kl": row.kl,
        "same_top": row.same_top,
        "against_d3": None if row.against_d3 is None else _drop(row.against_d3),
        "replies": replies,
    }


def _judged(judged: "Judged") -> dict[str, Any]:
    rise = None if judged.rise is None else _drop(judged.rise)
    counts = {"prompts": judged.prompts, "tokens": judged.tokens}
    return counts | {"perplexity": judged.perplexity, "rise": rise}


def _drop(drop: "Drop") -> dict[str, Any]:
    return {"drop": drop.value, "drop_interval": [drop.low, drop.high]}


def _bounds(drop: "Drop") -> str:
    """A rise of perplexity with its bounds: in percent, or as a factor where that is large."""
    values = (drop.value, drop.low, drop.high)
    if drop.value < LARGE:
        value, low, high = (round(100 * one, 2) + 0.0 for one in values)  # + 0.0 against -0.0
        return f"{value:+.2f}% ({low:+.2f} to {high:+.2f})"
    value, low, high = (1 + one for one in values)
    return f"×{value:,.1f} ({low:,.1f} to {high:,.1f})"
