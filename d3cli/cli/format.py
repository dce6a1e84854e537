"""Numbers, figures and tables as plain text, for a screen of a given width or for a pipe."""

import io
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from d3cli.base.inert import inert

if TYPE_CHECKING:
    from d3cli.decode.agreement import Agreement
    from d3cli.decode.reply import Reply
    from d3cli.decode.stats import LosslessStats

GAP = 3  # spaces that Rich puts between columns
WIDEST_TEXT = 24  # columns for a text in quotes


def cut(text: str, width: int = WIDEST_TEXT) -> str:
    """A text in quotes, cut to `width` terminal cells."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 2).rstrip() + '…"'


def aligned(
    titles: Sequence[str], rows: Sequence[Sequence[str]], width: int, left: Iterable[int] = ()
) -> str:
    """A table as plain text, at most `width` cells wide. The last columns are dropped if needed.

    Without titles it is a table of names and values, and long values are folded.

    Args:
        left: the indices of columns that are aligned to the left.
    """
    shown = [[inert(cell) for cell in row] for row in rows]
    count = len(titles) or 2
    if titles:
        wide = [max(map(cell_len, column)) for column in zip(titles, *shown, strict=True)]
        sums = accumulate(size + GAP for size in wide)
        count = sum(total - GAP <= width for total in sums) or 1
    table = Table(box=box.SIMPLE_HEAD if titles else None, show_edge=False, pad_edge=False)
    table.show_header = bool(titles)
    lefts = set(left)
    for at in range(count):
        title = titles[at] if titles else ""
        table.add_column(title, justify="left" if at in lefts else "right", overflow="fold")
    for row in shown:
        table.add_row(*(Text(cell) for cell in row[:count]))
    text = io.StringIO()
    Console(file=text, width=width, no_color=True, force_terminal=False).print(table)
    lines = text.getvalue().removesuffix("\n").split("\n")
    return "".join(line.rstrip() + "\n" for line in lines)


def one_line(text: str, width: int) -> str:
    """The first line of a text, cut to `width` terminal cells."""
    line = inert(text.strip().partition("\n")[0])
    return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"


def filled(
    titles: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """The table without its empty columns."""
    kept = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    return [titles[at] for at in kept], [[row[at] for at in kept] for row in rows]


def fixed(value: float | None, digits: int) -> str:
    """A number with `digits` decimal places; empty for None."""
    return "" if value is None else f"{value:z,.{digits}f}"


def percent(share: float | None) -> str:
    """A share in percent; empty for None."""
    return "" if share is None else f"{share:.1%}"


def speed(reply: "Reply") -> list[str]:
    """A reply's tokens, tokens per second, TTFT, depth unless lossless, bits: a few words each."""
    stats = reply.stats
    count = stats.completion_tokens
    parts = [f"{count:,} token{'' if count == 1 else 's'}"]
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.1f} tok/s")
    if stats.ttft_s is not None:
        parts.append(f"TTFT {stats.ttft_s:.2f} s")
    if stats.mean_depth is not None and stats.lossless is None:
        parts.append(
            f"layers mean {stats.mean_depth:.1f}, min {stats.min_depth:.4g} of "
            f"{reply.model.num_layers}"
        )
    if stats.bits is not None:
        parts.append(f"{stats.full_bits:.1f} → {stats.min_bits:.1f} bits, mean {stats.bits:.1f}")
    return parts


def draft_figures(stats: "LosslessStats") -> str:
    """What was drafted in a lossless reply, and what that gained, in a few words."""
    parts = [f"drafted {stats.drafted:,}"]
    if stats.drafted:
        parts.append(f"accepted {stats.accepted:,} ({stats.accepted / stats.drafted:.0%})")
    if stats.tokens_per_pass is not None:
        parts.append(f"{stats.tokens_per_pass:.1f} tokens a pass")
    if stats.speedup is not None:
        parts.append(f"{stats.speedup:.1f}× (predicted against plain steps)")
    return ", ".join(parts)


def agreement(found: "Agreement") -> str:
    """The share of tokens on which full depth agrees; empty if no token ran below full depth."""
    if found.share is None:
        return ""
    return f"{found.share:.1%} of {found.compared:,}"
