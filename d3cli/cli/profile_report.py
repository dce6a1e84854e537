"""A trace as text: tables for people, CSV, and two traces lined up."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from d3cli import trace_words
from d3cli.cli.profile_view import show_token
from d3cli.inert import inert
from d3cli.trace import LayerTime, ReplyTrace, TokenTrace, Trace
from d3cli.trace_summary import Spread, Summary, summarize

GAP = 3  # blanks between columns, as Rich draws them
Rows = list[tuple[str, str]]  # names and values


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the token table; left out where no token has a value for it."""

    title: str
    cell: Callable[[TokenTrace], str | None]
    left: bool = False


def _number(name: str, form: str) -> Callable[[TokenTrace], str | None]:
    def cell(token: TokenTrace) -> str | None:
        value = getattr(token, name)
        return None if value is None else format(value, f"z{form}")  # z: no negative zero

    return cell


def _full_choice(token: TokenTrace) -> str | None:
    if token.full_text is None:
        return None
    return "same" if token.agrees else show_token(token.full_text)


# In the order in which they are given up on a narrow screen, from the last one.
COLUMNS = (
    Column("step", lambda token: str(token.step)),
    Column("token", lambda token: show_token(token.text), left=True),
    Column("layers", _number("depth", ".4g")),
    Column("ms", _number("ms", ".1f")),
    Column("full depth", _full_choice, left=True),
    Column("needed", _number("needed_depth", ".4g")),
    Column("logprob", _number("logprob", ".3f")),
    Column("entropy", _number("entropy", ".3f")),
    Column("its logprob", _number("full_logprob", ".3f")),
    Column("KL", _number("kl", ".4f")),
    Column("lens", _number("saturation_layer", ".0f")),
    Column("± ms", _number("ms_sd", ".1f")),
)


def report(trace: Trace, width: int) -> str:
    """Tokens, positions, layers, and the facts last, where a terminal shows them."""
    parts = []
    for number, reply in enumerate(trace.replies, start=1):
        if len(trace.replies) > 1:
            parts.append(f"{number}: {one_line(reply.prompt, max(10, width - 4))}\n")
        parts.append(tokens_table(reply, width))
        if reply.layers is not None:
            parts.append(layers_table(trace, reply, width))
    total = summarize(trace, trace.replies)
    parts.append(positions_table(total, width))
    if len(trace.replies) > 1:
        parts.append(replies_table(trace, width))
    parts.append(aligned((), facts(trace, total), width, left=(0, 1)))
    return "\n".join(part for part in parts if part)


def facts(trace: Trace, total: Summary) -> Rows:
    """What was run, how fast it was, what it cost."""
    replies = trace.replies
    rows = [
        ("model", trace_words.title(trace)),
        ("depth", trace_words.schedule(trace)),
        ("sampling", trace_words.sampling(trace)),
        ("options", trace_words.options(trace)),
        ("machine", trace_words.machine(trace)),
        ("versions", trace_words.versions(trace)),
        ("fingerprint", trace.model.fingerprint or ""),
    ]
    rows = [row for row in rows if row[1]]
    if trace.interrupted:
        rows.append(("interrupted", "what was there until then is here"))
    repeats = {len(reply.repeats) for reply in replies}
    if max(repeats, default=0) > 1:
        rows.append(("repeats", f"{max(repeats)}, after one that warmed up; mean ± sd"))
    if total.ttft_s is not None:
        rows.append(
            (
                "prefill",
                f"{total.prompt_tokens:,} tokens, TTFT {trace_words.spread(total.ttft_s, 3)} s",
            )
        )
    if total.tokens_per_second is not None and total.tpot_ms is not None:
        rows.append(
            (
                "decode",
                f"{trace_words.spread(total.tokens_per_second, 1)} tok/s; TPOT {total.tpot_ms:.1f} "
                f"ms (median), {total.tpot_p95_ms:.1f} (95th percentile)"
                + ("" if total.cpu_percent is None else f"; processor {total.cpu_percent:.0f}%"),
            )
        )
    memory = "GPU" if trace.machine.gpu else "process"
    rows.append(("peak memory", f"{trace.peak_memory_bytes / 1e9:.2f} GB ({memory})"))
    ratios = trace_words.ratios(total, replies)
    if ratios:
        rows.append(("ratio", ratios))
    found = list(trace_words.sentences(total, trace, replies))
    return rows + [("in words" if not number else "", one) for number, one in enumerate(found)]


def tokens_table(reply: ReplyTrace, width: int) -> str:
    """One line a token; as many columns as fit."""
    chosen = [
        (column, [column.cell(token) or "" for token in reply.tokens])
        for column in COLUMNS
        if any(column.cell(token) is not None for token in reply.tokens)
    ]
    if not chosen:
        return ""
    rows = [list(row) for row in zip(*(values for _, values in chosen), strict=True)]
    if reply.finish_reason == "stop" and not reply.tokens[-1].text:
        rows[-1][1] = "(end)"
    left = [at for at, (column, _) in enumerate(chosen) if column.left]
    return aligned([column.title for column, _ in chosen], rows, width, left)


def positions_table(total: Summary, width: int) -> str:
    """What happens along the reply; empty for short ones."""
    if len(total.stretches) < 2:
        return ""
    rows = [
        (
            f"{one.begin} to {one.end - 1}",
            f"{one.depth:.2f}",
            f"{one.ms:.1f}",
            _percent(one.agreement),
            _fixed(one.kl, 4),
            _fixed(one.needed, 2),
            _fixed(one.saturation, 2),
        )
        for one in total.stretches
    ]
    titles = ("tokens", "layers", "ms", "agree", "KL", "needed", "lens")
    return aligned(*_filled(titles, rows), width)


def layers_table(trace: Trace, reply: ReplyTrace, width: int) -> str:
    """Milliseconds and bytes by layer and part, at full depth."""
    found = reply.layers
    assert found is not None
    weights = trace.model.weight_bytes
    rows = [
        (
            str(layer),
            f"{time.attn:.3f}",
            _fixed(time.mlp, 3),
            f"{time.other:.3f}",
            _megabytes(size.attn),
            _megabytes(size.mlp),
            _rate(size.total, _total(time)),
        )
        for layer, (time, size) in enumerate(zip(found.layers, weights.layers, strict=True))
    ]
    whole = [
        sum(time.attn for time in found.layers),
        sum(time.mlp or 0.0 for time in found.layers),
        sum(time.other for time in found.layers),
    ]
    everything = sum(whole) + found.head_ms + found.rest_ms
    sizes = [
        sum(layer.attn for layer in weights.layers),
        sum(layer.mlp for layer in weights.layers),
        sum(layer.other for layer in weights.layers),
    ]
    titles = ("layer", "attn ms", "MLP ms", "rest ms", "attn MB", "MLP MB", "GB/s")
    parts = [
        ("attention", whole[0], sizes[0]),
        ("MLP", whole[1], sizes[1]),
        ("rest of the layers", whole[2], sizes[2]),
        ("LM head", found.head_ms, weights.fixed),
        ("everything else", found.rest_ms, None),
        ("a step at full depth", everything, weights.total),
    ]
    summary = [
        (
            name,
            f"{ms:.2f}",
            f"{ms / everything:.1%}" if everything else "",
            "" if size is None else _megabytes(size),
            "" if size is None else _rate(size, ms),
        )
        for name, ms, size in parts
    ]
    return "\n".join(
        (
            aligned(*_filled(titles, rows), width),
            aligned(
                (f"of {found.steps} steps", "ms", "share", "MB", "GB/s"), summary, width, left=(0,)
            ),
        )
    )


def replies_table(trace: Trace, width: int) -> str:
    """One line a reply."""
    rows = []
    for number, reply in enumerate(trace.replies, start=1):
        one = summarize(trace, [reply])
        rows.append(
            (
                str(number),
                f"{one.prompt_tokens:,}",
                f"{one.tokens:,}",
                _fixed(_mean(one.ttft_s), 3),
                _fixed(_mean(one.tokens_per_second), 1),
                _fixed(one.mean_depth, 2),
                _fixed(one.byte_ratio, 2),
                _percent(one.agreement),
                reply.finish_reason,
            )
        )
    titles = ("reply", "prompt", "tokens", "TTFT s", "tok/s", "layers", "bytes ×", "agree", "end")
    return aligned(*_filled(titles, rows), width)


def csv_text(trace: Trace) -> str:
    """One line a token; texts as JSON strings, so that no program takes one for a formula."""
    names = [field.name for field in fields(TokenTrace)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["reply", *names])
    for number, reply in enumerate(trace.replies, start=1):
        for token in reply.tokens:
            values = [getattr(token, name) for name in names]
            writer.writerow([number, *(json.dumps(v) if isinstance(v, str) else v for v in values)])
    return text.getvalue()


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None else spread.mean


Measure = Callable[[Trace, Summary], float | None]
# What two traces are compared by: what to call it, where it is, and its digits.
MEASURES: tuple[tuple[str, Measure, int], ...] = (
    ("tokens", lambda _, one: one.tokens, 0),
    ("TTFT, s", lambda _, one: _mean(one.ttft_s), 3),
    ("tok/s", lambda _, one: _mean(one.tokens_per_second), 1),
    ("TPOT, ms", lambda _, one: one.tpot_ms, 2),
    ("TPOT p95, ms", lambda _, one: one.tpot_p95_ms, 2),
    ("mean depth", lambda _, one: one.mean_depth, 2),
    ("byte ratio", lambda _, one: one.byte_ratio, 3),
    ("perplexity", lambda _, one: one.perplexity, 4),
    ("agreement", lambda _, one: one.agreement, 4),
    ("KL", lambda _, one: one.kl, 4),
    ("needed depth", lambda _, one: one.needed.mean if one.needed else None, 2),
    ("peak memory, GB", lambda trace, _: trace.peak_memory_bytes / 1e9, 3),
)


def against_json(ours: Trace, theirs: Trace) -> dict[str, Any]:
    """Two traces lined up, as a plain object: docs/trace.md."""
    a, b = summarize(ours, ours.replies), summarize(theirs, theirs.replies)
    measures = {}
    for name, value, _ in MEASURES:
        first, second = value(ours, a), value(theirs, b)
        if first is None and second is None:
            continue
        ratio = second / first if first and second is not None else None
        measures[name] = {"from": first, "against": second, "ratio": ratio}
    return {
        "schema": 1,
        "differs": list(_differs(ours, theirs)),
        "replies": [
            _first_difference(one, other)
            for one, other in zip(ours.replies, theirs.replies, strict=False)
        ],
        "measures": measures,
    }


def against_report(ours: Trace, theirs: Trace, names: tuple[str, str], width: int) -> str:
    """Two traces lined up, for people."""
    data = against_json(ours, theirs)
    digits = {name: places for name, _, places in MEASURES}
    rows = [
        (
            name,
            _fixed(one["from"], digits[name]),
            _fixed(one["against"], digits[name]),
            _fixed(one["ratio"], 3),
        )
        for name, one in data["measures"].items()
    ]
    words = [("from", names[0]), ("against", names[1])]
    words += [("differs", what) for what in data["differs"]]
    for number, one in enumerate(data["replies"], start=1):
        name = "first difference" if len(data["replies"]) == 1 else f"first difference, {number}"
        words.append((name, _difference_in_words(one)))
    return "\n".join(
        (
            aligned(("", "from", "against", "ratio"), rows, width, left=(0,)),
            aligned((), words, width, left=(0, 1)),
        )
    )


def _differs(ours: Trace, theirs: Trace) -> Iterator[str]:
    """What two runs do not have in common, beside their figures."""
    pairs = {
        "model": (ours.model.name, theirs.model.name),
        "weights": (ours.model.fingerprint, theirs.model.fingerprint),
        "loaded as": (
            f"{ours.model.dtype} {ours.model.quantization or ''}".strip(),
            f"{theirs.model.dtype} {theirs.model.quantization or ''}".strip(),
        ),
        "depth": (ours.depth_schedule.in_words(), theirs.depth_schedule.in_words()),
        "skip order": (ours.depth_schedule.skip_order, theirs.depth_schedule.skip_order),
        "sampling": (trace_words.sampling(ours), trace_words.sampling(theirs)),
        "options": (trace_words.options(ours), trace_words.options(theirs)),
        "machine": (trace_words.machine(ours), trace_words.machine(theirs)),
        "versions": (trace_words.versions(ours), trace_words.versions(theirs)),
        "prompts": (
            [reply.prompt_sha256 for reply in ours.replies],
            [reply.prompt_sha256 for reply in theirs.replies],
        ),
    }
    for name, (one, other) in pairs.items():
        if one != other:
            short = isinstance(one, str) and name not in ("weights", "versions")
            yield f"{name}: {one or 'none'} | {other or 'none'}" if short else name


def _first_difference(ours: ReplyTrace, theirs: ReplyTrace) -> dict[str, Any]:
    pairs = zip(ours.tokens, theirs.tokens, strict=False)
    steps = (one.step for one, other in pairs if one.token_id != other.token_id)
    shorter = min(len(ours.tokens), len(theirs.tokens))
    longer = max(len(ours.tokens), len(theirs.tokens))
    step = next(steps, None if shorter == longer else shorter)
    texts = [
        None if step is None or step >= len(reply.tokens) else reply.tokens[step].text
        for reply in (ours, theirs)
    ]
    return {"same_tokens": shorter if step is None else step, "step": step, "texts": texts}


def _difference_in_words(one: dict[str, Any]) -> str:
    if one["step"] is None:
        return f"none: the same {one['same_tokens']:,} tokens"
    shown = [show_token(text) if text is not None else "nothing" for text in one["texts"]]
    return f"token {one['step']:,}: {shown[0]} | {shown[1]}"


def aligned(
    titles: Sequence[str], rows: Sequence[Sequence[str]], width: int, left: Iterable[int] = ()
) -> str:
    """A table as plain text. Columns that do not fit are left out, from the last one.

    Without titles it is names and values, and what is too wide is folded.
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
    """The first line of a text, cut to so many cells."""
    line = inert(text.strip().partition("\n")[0])
    return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"


def _filled(
    titles: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Without the columns that are empty throughout."""
    kept = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    return [titles[at] for at in kept], [[row[at] for at in kept] for row in rows]


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:z,.{digits}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"


def _rate(size: int, ms: float) -> str:
    return f"{size / 1e6 / ms:,.1f}" if ms else ""


def _total(time: LayerTime) -> float:
    return time.attn + (time.mlp or 0.0) + time.other
