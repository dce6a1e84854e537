"""What each layer did for each token, as characters: the heat map of a report in a terminal."""

from textwrap import wrap

from d3cli.profile.cells import Cell, cells
from d3cli.profile.trace import ReplyTrace, Trace

SHADES = {
    Cell.RUN: "█",
    Cell.ONE_LOW_PLANE: "▓",
    Cell.NO_LOW_PLANES: "▒",
    Cell.NO_ATTENTION: "a",
    Cell.NO_MLP: "m",
    Cell.SKIPPED: "·",
    None: "?",
}
MARGIN = 8  # for the layers' numbers
FEWEST_COLUMNS = 8


def heat_map(trace: Trace, reply: ReplyTrace, width: int) -> str:
    """One line per layer, the last layer first; empty if nothing was dropped."""
    if not any(token.dropped_units for token in reply.tokens):
        return ""
    columns = max(FEWEST_COLUMNS, width - MARGIN)
    each = -(-len(reply.tokens) // columns)  # tokens in a column, which shows its first one
    shown = reply.tokens[::each]
    table = cells(trace, reply, shown)
    lines = [
        f"{layer:>6} {''.join(SHADES[cell] for cell in table[layer])}"
        for layer in reversed(range(len(table)))
    ]
    last = str(shown[-1].step)
    lines.append(f"{'token':>6} 0{last.rjust(len(shown) - 1)}" if len(shown) > len(last) else "")
    found = {cell for row in table for cell in row}
    legend = [f"{SHADES[cell]} {cell.in_words}" for cell in reversed(Cell) if cell in found]
    legend += [f"a column is {each} tokens"] if each > 1 else []
    margin = " " * (MARGIN - 1) if width > 2 * MARGIN else ""
    wrapped = wrap(", ".join(legend), width, initial_indent=margin, subsequent_indent=margin)
    return "\n".join([*lines, *wrapped, ""])
