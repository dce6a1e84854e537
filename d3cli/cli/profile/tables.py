"""A trace as text: tables, and CSV."""

import csv
import io
import json
from dataclasses import fields

from d3cli.base.amounts import readable_size
from d3cli.cli.format import aligned, cut, filled, fixed, one_line, percent
from d3cli.cli.profile.heat_map import heat_map
from d3cli.depth.units import WeightBytes
from d3cli.profile import lossless_sentences, sentences
from d3cli.profile.columns import Column, columns_of
from d3cli.profile.lossless_figures import LosslessFigures
from d3cli.profile.summary import Summary, mean, summarize
from d3cli.profile.trace import ReplyTrace, TokenTrace, Trace
from d3cli.profile.trace_times import LayersTrace, LayerTime

Rows = list[tuple[str, str]]  # names and values


def report(trace: Trace, width: int) -> str:
    """The whole report. The facts come last, where a terminal shows them."""
    parts = []
    for number, reply in enumerate(trace.replies, start=1):
        if len(trace.replies) > 1:
            parts.append(f"{number}: {one_line(reply.prompt, max(10, width - 4))}\n")
        parts.append(tokens_table(reply, width))
        parts.append(heat_map(trace, reply, width))
        if reply.layers is not None:
            parts.append(layers_table(trace, reply, width))
    total = summarize(trace, trace.replies)
    parts.append(positions_table(total, width))
    if total.lossless is not None and total.lossless.sources:
        parts.append(drafts_table(total.lossless, width))
    if len(trace.replies) > 1:
        parts.append(replies_table(trace, width))
    parts.append(aligned((), facts(trace, total), width, left=(0, 1)))
    return "\n".join(part for part in parts if part)


def facts(trace: Trace, total: Summary) -> Rows:
    """The run, its speed and its cost."""
    replies = trace.replies
    rows = [
        ("model", sentences.title(trace)),
        ("depth", sentences.schedule(trace)),
        ("lossless", lossless_sentences.drafts(trace)),
        ("sampling", sentences.sampling(trace)),
        ("options", sentences.options(trace)),
        ("machine", sentences.machine(trace)),
        ("versions", sentences.versions(trace)),
        ("fingerprint", trace.model.fingerprint or ""),
    ]
    rows = [row for row in rows if row[1]]
    if total.lossless is not None:
        rows.append(("drafts", lossless_sentences.in_short(total.lossless)))
        rows.append(("time", lossless_sentences.times(total.lossless)))
    if trace.interrupted:
        rows.append(("interrupted", "yes; this is what was recorded until then"))
    repeats = {len(reply.repeats) for reply in replies}
    if max(repeats, default=0) > 1:
        rows.append(("repeats", f"{max(repeats)}, after one warm-up; mean ± sd"))
    if total.ttft_s is not None:
        rows.append(
            (
                "prefill",
                f"{total.prompt_tokens:,} tokens, TTFT {sentences.spread(total.ttft_s, 3)} s",
            )
        )
    if total.tokens_per_second is not None and total.tpot_ms is not None:
        rows.append(
            (
                "decode",
                f"{sentences.spread(total.tokens_per_second, 1)} tok/s; TPOT {total.tpot_ms:.1f} "
                f"ms (median), {total.tpot_p95_ms:.1f} (95th percentile)"
                + ("" if total.cpu_percent is None else f"; processor {total.cpu_percent:.0f}%"),
            )
        )
    memory = "GPU" if trace.machine.gpu else "process"
    rows.append(("peak memory", f"{readable_size(trace.peak_memory_bytes)} ({memory})"))
    ratios = sentences.ratios(total, replies)
    if ratios:
        rows.append(("ratio", ratios))
    found = list(sentences.sentences(total, trace, replies))
    return rows + [("summary" if not number else "", one) for number, one in enumerate(found)]


def tokens_table(reply: ReplyTrace, width: int) -> str:
    """One line per token, with as many columns as fit."""
    columns = columns_of(reply.tokens)
    rows = [[_cell(column, token) for column in columns] for token in reply.tokens]
    if not rows:
        return ""
    if reply.finish_reason == "stop" and not reply.tokens[-1].text:
        rows[-1][1] = "(end)"
    left = [at for at, column in enumerate(columns) if column.is_text]
    return aligned([column.title for column in columns], rows, width, left)


def _cell(column: Column, token: TokenTrace) -> str:
    cell = column.cell(token)
    return cut(cell) if column.is_text else cell


def positions_table(total: Summary, width: int) -> str:
    """Means by position in the reply; empty for short replies."""
    if len(total.stretches) < 2:
        return ""
    rows = [
        (
            f"{one.begin} to {one.end - 1}",
            f"{one.depth:.2f}",
            fixed(one.ms, 1),
            percent(one.agreement),
            fixed(one.kl, 4),
            fixed(one.needed, 2),
            fixed(one.saturation, 2),
        )
        for one in total.stretches
    ]
    titles = ("tokens", "layers", "ms", "agree", "KL", "needed", "lens")
    return aligned(*filled(titles, rows), width)


def drafts_table(found: LosslessFigures, width: int) -> str:
    """One line for each source of drafts."""
    rows = [
        (
            name,
            f"{one.drafts:,}",
            f"{one.drafted:,}",
            f"{one.accepted:,}",
            f"{one.accepted / one.drafted:.1%}",
            f"{1000 * one.draft_s / one.drafted:.2f}",
        )
        for name, one in found.sources.items()
    ]
    titles = ("drafted by", "drafts", "tokens", "accepted", "share", "ms a token")
    return aligned(titles, rows, width, left=(0,))


def layers_table(trace: Trace, reply: ReplyTrace, width: int) -> str:
    """Milliseconds and bytes of each layer and part at full depth.

    The low planes of nested weights are part of their sublayers' bytes.
    """
    found = reply.layers
    assert found is not None
    weights = trace.model.weight_bytes
    rows = [
        (
            str(layer),
            f"{time.attn:.3f}",
            fixed(time.mlp, 3),
            f"{time.other:.3f}",
            _megabytes(size.attn),
            _megabytes(size.mlp),
            _megabytes(size.attn_low + size.mlp_low) if weights.is_nested else "",
            _rate(size.total, _total(time)),
        )
        for layer, (time, size) in enumerate(zip(found.layers, weights.layers, strict=True))
    ]
    titles = ("layer", "attn ms", "MLP ms", "rest ms", "attn MB", "MLP MB", "low MB", "GB/s")
    by_part = (f"median of {found.steps} steps", "ms", "share", "MB", "GB/s")
    return "\n".join(
        (
            aligned(*filled(titles, rows), width),
            aligned(by_part, _part_rows(found, weights), width, left=(0,)),
        )
    )


def _part_rows(found: LayersTrace, weights: WeightBytes) -> list[tuple[str, ...]]:
    """The parts of a decode step: time, share of the step, bytes and their rate."""
    times, sizes = found.layers, weights.layers
    parts = [
        ("attention", sum(time.attn for time in times), sum(size.attn for size in sizes)),
        ("MLP", sum(time.mlp or 0.0 for time in times), sum(size.mlp for size in sizes)),
        (
            "rest of the layers",
            sum(time.other for time in times),
            sum(size.other for size in sizes),
        ),
        ("LM head", found.head_ms, weights.fixed),
        ("everything else", found.rest_ms, None),
    ]
    whole = sum(ms for _, ms, _ in parts)
    return [
        (
            name,
            f"{ms:.2f}",
            f"{ms / whole:.1%}" if whole else "",
            "" if size is None else _megabytes(size),
            "" if size is None else _rate(size, ms),
        )
        for name, ms, size in [*parts, ("whole step at full depth", whole, weights.total)]
    ]


def replies_table(trace: Trace, width: int) -> str:
    """One line per reply."""
    rows = []
    for number, reply in enumerate(trace.replies, start=1):
        one = summarize(trace, [reply])
        rows.append(
            (
                str(number),
                f"{one.prompt_tokens:,}",
                f"{one.tokens:,}",
                fixed(mean(one.ttft_s), 3),
                fixed(mean(one.tokens_per_second), 1),
                fixed(one.mean_depth, 2),
                fixed(one.byte_ratio, 2),
                percent(one.agreement),
                reply.finish_reason,
            )
        )
    titles = ("reply", "prompt", "tokens", "TTFT s", "tok/s", "layers", "bytes ×", "agree", "end")
    return aligned(*filled(titles, rows), width)


def csv_text(trace: Trace) -> str:
    """One line per token. Texts are JSON strings, so that no program takes one for a formula."""
    names = [field.name for field in fields(TokenTrace)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["reply", *names])
    for number, reply in enumerate(trace.replies, start=1):
        for token in reply.tokens:
            values = [getattr(token, name) for name in names]
            writer.writerow([number, *(json.dumps(v) if isinstance(v, str) else v for v in values)])
    return text.getvalue()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"


def _rate(size: int, ms: float) -> str:
    return f"{size / 1e6 / ms:,.1f}" if ms else ""


def _total(time: LayerTime) -> float:
    return time.attn + (time.mlp or 0.0) + time.other
