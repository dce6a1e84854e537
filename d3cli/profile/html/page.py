"""A trace as one HTML file that opens anywhere, with charts by plotly.js and a table.

A trace's texts stay texts: the template escapes them, and the data are in a block that never runs.
A content security policy allows only the two scripts whose hashes it names, and no request. No
torch.
"""

import html
import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from d3cli.base.amounts import readable_size
from d3cli.base.inert import inert, quoted
from d3cli.profile import cells, lossless_sentences, sentences
from d3cli.profile.columns import columns_of
from d3cli.profile.html.charts import CELL_COLOURS, charts_of
from d3cli.profile.html.strip import kinds_of, strip
from d3cli.profile.summary import Summary, summarize
from d3cli.profile.trace import ReplyTrace, TokenTrace, Trace


def html_report(trace: Trace) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=PackageLoader("d3cli.profile", "report"), autoescape=True)
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
        words=[inert(one) for one in sentences.sentences(total, trace, trace.replies)],
        interrupted=trace.interrupted,
        states=[(cell.in_words, CELL_COLOURS[cell]) for cell in cells.kinds_of(trace)],
        replies=replies,
        data=_data([reply["data"] for reply in replies]),
    )


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _data(value: object) -> Markup:
    """JSON for a script block, without characters that could end the block."""
    text = json.dumps(value, allow_nan=False)  # ASCII
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - see above


def _head(trace: Trace) -> list[tuple[str, str]]:
    rows = [("depth", sentences.schedule(trace)), ("sampling", sentences.sampling(trace))]
    if trace.lossless is not None:
        rows.insert(1, ("lossless", lossless_sentences.drafts(trace)))
    rows.append(("machine", sentences.machine(trace)))
    return [("model", sentences.title(trace)), *rows, ("created", trace.created)]


def _foot(trace: Trace) -> list[tuple[str, str]]:
    model = trace.model
    rows = [
        ("versions", sentences.versions(trace)),
        ("model type", model.model_type),
        ("fingerprint", model.fingerprint or "none (not loaded from files)"),
        ("revision", model.revision or ""),
        ("weights", f"{readable_size(model.weight_bytes.total)} per step at full depth"),
        ("peak memory", readable_size(trace.peak_memory_bytes)),
        ("schedule", json.dumps(trace.schedule)),
        ("options", sentences.options(trace)),
        ("needed-depth order", _needed_order(trace)),
    ]
    return [row for row in rows if row[1]]


def _needed_order(trace: Trace) -> str:
    if any(reply.needed_order is not None for reply in trace.replies):
        return "each prompt's own"
    return " ".join(trace.needed_order or ())


def _tiles(total: Summary, replies: Sequence[ReplyTrace]) -> Iterator[tuple[str, str, str]]:
    """Yields a name, a figure and the text under it."""
    if total.tokens_per_second is not None:
        sd = total.tokens_per_second.sd
        yield (
            "tokens per second",
            f"{total.tokens_per_second.mean:.1f}",
            ", ".join(
                ([] if total.tpot_ms is None else [f"TPOT {total.tpot_ms:.1f} ms"])
                + ([] if sd is None else [f"± {sd:.1f} tok/s"])
            ),
        )
    if total.ttft_s is not None:
        yield "TTFT", f"{total.ttft_s.mean:.3f} s", f"prompt of {total.prompt_tokens:,} tokens"
    clocks = [reply.clock for reply in replies if reply.clock is not None]
    if len(clocks) == 1:
        low, high = clocks[0].low, clocks[0].high
        yield "faster by the clock", f"{clocks[0].ratio:.2f}×", f"{low:.2f} to {high:.2f}"
    if total.lossless is not None:
        yield from _draft_tiles(total, timed=bool(clocks))
    elif total.layer_ratio is not None and total.byte_ratio is not None:
        yield (
            "fewer layers",
            f"{total.layer_ratio:.2f}×",
            f"{total.mean_depth:.1f} per token, minimum {total.min_depth:.4g}",
        )
        yield (
            "fewer bytes",
            f"{total.byte_ratio:.2f}×",
            f"{total.byte_ratio_net:.2f}× net of repair",
        )
    if total.bits is not None:
        yield (
            "bits per weight",
            f"{total.full_bits:.1f} → {total.min_bits:.1f}",
            f"{total.bits:.1f} on average",
        )
    if total.agreement is not None:
        yield (
            "agreement",
            f"{total.agreement:.1%}",
            f"of {total.compared:,} tokens below full depth",
        )


def _draft_tiles(total: Summary, *, timed: bool) -> Iterator[tuple[str, str, str]]:
    found = total.lossless
    assert found is not None
    if not timed and found.predicted is not None:
        yield "faster than plain steps", f"{found.predicted:.2f}×", "predicted"
    if found.tokens_per_pass is not None:
        yield "tokens per pass", f"{found.tokens_per_pass:.2f}", f"{found.passes:,} passes"
    if found.accepted_share is not None:
        under = f"{found.accepted:,} of {found.drafted:,} drafted tokens"
        yield "accepted", f"{found.accepted_share:.0%}", under
    if total.byte_ratio is not None:
        yield "fewer bytes", f"{total.byte_ratio:.2f}×", "for each token, with its draft"


def _reply(trace: Trace, reply: ReplyTrace) -> dict[str, Any]:
    """One reply for the template, with the data of its charts."""
    first = inert(reply.prompt.strip().partition("\n")[0])
    summary = summarize(trace, [reply])
    charts = list(charts_of(trace, reply, summary))
    columns = columns_of(reply.tokens)
    labels = [_label(token) for token in reply.tokens]
    pieces = strip(reply, [" · ".join(parts) for parts in labels])
    return {
        "name": first if len(first) <= 60 else first[:59] + "…",
        "words": [inert(one) for one in sentences.sentences(summary, trace, [reply])],
        "text": inert("".join(token.text for token in reply.tokens)),
        "prompt": inert(reply.prompt),
        "columns": [column.title for column in columns],
        "rows": [
            [(column.cell(token), column.value(token)) for column in columns]
            for token in reply.tokens
        ],
        "charts": [(chart["id"], chart["title"], chart["note"]) for chart in charts],
        # plotly.js interprets some HTML in labels, so they are escaped for it as well.
        "data": {
            "labels": [
                html.escape("\0".join(parts), quote=False).replace("\0", "<br>") for parts in labels
            ],
            "charts": charts,
        },
        "strip": pieces,
        "kinds": kinds_of(pieces),
    }


def _label(token: TokenTrace) -> list[str]:
    """What there is to say about a token, inert."""
    parts = [
        f"token {token.step}: {quoted(token.text)}",
        f"depth {token.depth:.4g}",
        "prefill" if token.ms is None else f"{token.ms:.1f} ms",
    ]
    if token.pass_number is not None:
        parts[1] = f"pass {token.pass_number}"
        by = token.drafted_by
        parts.append("full depth's own" if by is None else f"drafted by {by}, accepted")
    if token.rejected_text is not None:
        parts.append(f"instead of {quoted(token.rejected_text)}")
    if token.full_text is not None:
        choice = quoted(token.full_text)
        parts.append("full depth agrees" if token.agrees else f"full depth: {choice}")
    if token.needed_depth is not None:
        parts.append(f"needed {token.needed_depth:.4g}")
    return parts
