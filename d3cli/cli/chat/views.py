"""The texts that a chat's commands show."""

import math
from typing import TYPE_CHECKING

from d3cli.base.amounts import readable_size
from d3cli.cli.chat.settings import ChatSettings
from d3cli.cli.chat.totals import Totals
from d3cli.cli.format import agreement, speed
from d3cli.decode import transcript
from d3cli.decode.transcript import ChatMessage
from d3cli.depth.calibration_record import form_in_words
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import PromptSchedule

if TYPE_CHECKING:
    from d3cli.decode.conversation import Conversation, ReplyOptions
    from d3cli.decode.reply import Reply
    from d3cli.scoring.compare_reply import ReplyComparison

KEYS = """\
Enter sends · Ctrl-J or Alt-Enter starts a new line · \"\"\" begins and ends several lines
Tab completes · Ctrl-G opens $EDITOR · Up and Ctrl-R search the history
Ctrl-C stops a reply · Ctrl-D leaves
To send a message that begins with a slash, type //"""
# A curve: the columns beside it, its largest width and height, and the fewest tokens it shows.
CURVE_MARGIN, WIDEST_CURVE, MOST_LINES, CURVE_TOKENS = 24, 72, 16, 64

Rows = list[tuple[str, str]]  # names and values


def depth_in_words(options: "ReplyOptions", compared: str = "") -> str:
    """The depth schedule, where it comes from and, if its order has no measured cost, that.

    Args:
        compared: what a comparison of a reply by this schedule with full depth has found.
    """
    schedule, source = options.schedule, options.schedule_source
    if schedule.alpha == 1 or not schedule.units:
        return schedule.in_words()
    origin = str(source.in_words)
    if source is Source.PROMPT:
        origin += f"; {compared or 'nobody has measured what it costs'}"
    return f"{schedule.in_words()} ({origin})"


def skip_order(options: "ReplyOptions", reply: "Reply | None") -> str:
    """The order in which units are dropped: the present one, and the last reply's if another."""
    schedule = options.schedule
    before = () if reply is None else reply.schedule.skip_order
    last = f"skip order of the last reply: {', '.join(before)}"
    if isinstance(schedule, PromptSchedule):
        return last if before else "skip order: each prompt decides it"
    now = f"skip order: {', '.join(schedule.skip_order) or 'none'}"
    return f"{now}\n{last}" if before and before != schedule.skip_order else now


def depth_curves(
    options: "ReplyOptions", reply: "Reply | None", width: int, compared: str = ""
) -> str:
    """A drawing of the layers per token, by the present schedule and in the last reply."""
    import plotille

    schedule = options.schedule
    used = [] if reply is None else [token.depth for token in reply.tokens]
    tokens = max(CURVE_TOKENS, len(used), 2 * schedule.start)
    step = math.ceil(schedule.num_layers / MOST_LINES)  # layers per line of text
    figure = plotille.Figure()
    figure.with_colors = figure.origin = False
    figure.width = max(16, min(width - CURVE_MARGIN, WIDEST_CURVE))
    figure.height = 1 + math.ceil(schedule.num_layers / step)
    figure.x_label, figure.y_label = "token", "layers"
    figure.set_x_limits(0, tokens)
    figure.set_y_limits(0, step * figure.height)
    figure.x_ticks_fkt = lambda value, _: f"{value:.0f}"
    figure.y_ticks_fkt = lambda value, _: f"{value:.0f}"
    figure.plot(range(tokens), [schedule.depth(t) for t in range(tokens)])
    legend = f"line: {depth_in_words(options, compared)}"
    if used:
        every = max(1, len(used) // figure.width)
        figure.scatter(range(0, len(used), every), used[::every], marker="o")
        legend += f"\no: last reply, {len(used):,} token{'s' * (len(used) > 1)}"
        if len(used) > 1:  # the prefill writes the first token
            legend += f", mean {sum(used[1:]) / (len(used) - 1):.1f} layers"
    return f"{figure.show()}\n{legend}\n{skip_order(options, reply)}"


def settings(now: ChatSettings, options: "ReplyOptions") -> dict[str, str]:
    """The value of every setting in words, by the name that /set knows."""
    sampling, schedule = options.sampling, options.schedule
    on = {True: "on", False: "off"}
    return {
        "temperature": f"{sampling.temperature:g}{' (greedy)' if sampling.is_greedy else ''}",
        "top-p": f"{sampling.top_p:g}",
        "top-k": f"{sampling.top_k}",
        "min-p": f"{sampling.min_p:g}",
        "repetition-penalty": f"{sampling.repetition_penalty:g}",
        "seed": "a new one for each reply" if sampling.seed is None else str(sampling.seed),
        "max-tokens": str(now.max_tokens or "up to the end of the context"),
        "stop": " ".join(map(repr, now.stop)) or "none",
        "start": str(schedule.start),
        "core-first": str(schedule.core_first),
        "core-last": str(schedule.core_last),
        "units": now.units,
        "think": now.think or "the model's default",
        "stats": on[now.stats],
        "plain": on[now.plain],
        "on-overflow": now.on_overflow,
        "repair": now.repair,
    }


def overview(
    conversation: "Conversation", now: ChatSettings, options: "ReplyOptions", compared: str = ""
) -> Rows:
    """The model, its depth and sampling, and how much of the context is used."""
    model, chosen = conversation.model, settings(now, options)
    sampling = ", ".join(
        f"{name} {chosen[name]}"
        for name in ("temperature", "top-p", "top-k", "min-p", "repetition-penalty", "seed")
    )
    used = len(conversation.opening(options))
    share = used / model.context_length
    left_out = conversation.left_out
    form = "" if model.origin.key is None else f", {form_in_words(model.origin.key.form)}"
    return [
        ("model", f"{model.name}{form}, {model.num_layers} layers"),
        ("depth", depth_in_words(options, compared)),
        ("sampling", "greedy" if options.sampling.is_greedy else sampling),
        ("max-tokens", chosen["max-tokens"]),
        ("system", conversation.system.partition("\n")[0][:60] or "none"),
        (
            "context",
            f"{used:,} of {model.context_length:,} tokens ({share:.0%}), "
            f"{len(conversation.messages)} messages"
            + (f", {left_out} of them no longer shown to the model" if left_out else ""),
        ),
    ]


def stats_line(reply: "Reply") -> str:
    """A reply's figures on one line."""
    parts = speed(reply)
    if reply.stats.byte_ratio is not None:
        parts.append(f"byte ratio {reply.stats.byte_ratio:.2f}×")
    if reply.finish_reason != "stop":
        parts.append(f"stopped: {reply.finish_reason}")
    return " · ".join(parts)


def totals(total: Totals, reply: "Reply | None") -> Rows:
    """Figures of the last reply and of all replies since the chat began."""
    pairs: Rows = []
    if reply is not None:
        stats = reply.stats
        pairs += [
            ("last reply", stats_line(reply)),
            ("prompt", f"{stats.prompt_tokens:,} tokens, {reply.reused:,} of them from the cache"),
        ]
        if stats.layer_ratio is not None and stats.byte_ratio is not None:
            net = reply.schedule.byte_ratio(
                stats.completion_tokens, reply.model.weight_bytes, net_of_repair=True
            )
            pairs.append(
                (
                    "ratios",
                    f"layers {stats.layer_ratio:.2f}×, bytes {stats.byte_ratio:.2f}×, "
                    f"{net:.2f}× net of repair",
                )
            )
        if reply.agreement is not None and reply.agreement.share is not None:
            pairs.append(("agreement", f"{agreement(reply.agreement)} tokens"))
        if stats.seed is not None:
            pairs.append(("seed", str(stats.seed)))
        pairs.append(("peak memory", readable_size(stats.peak_memory_bytes)))
    layers = f", layers mean {total.depth / total.steps:.1f}" if total.steps else ""
    pace = f", {total.steps / total.decode_s:.1f} tok/s" if total.decode_s > 0 else ""
    pairs.append(("all replies", f"{total.replies}: {total.tokens:,} tokens{pace}{layers}"))
    if total.compared:
        share = total.agreed / total.compared
        pairs.append(("agreement", f"{share:.1%} of {total.compared:,} tokens"))
    return pairs


def comparison(reply: "Reply", found: "ReplyComparison") -> Rows:
    """The last reply compared with full depth."""
    step = found.first_difference
    if step is None:
        first = "none: full depth writes the same reply"
    else:
        at = "".join(reply.pieces[:step])[-40:].replace("\n", " ")
        first = f'token {step:,}, after "…{at}"'
    ratio = found.perplexity / found.full_perplexity
    pairs = [
        ("first different token", first),
        ("agreement", f"{agreement(found.agreement)} tokens below full depth"),
    ]
    if found.rounding is not None:
        best = f"{agreement(found.rounding)}, the best possible in this dtype"
        pairs.append(("rounding alone", best))
    pairs.append(
        (
            "perplexity of this reply",
            f"{found.perplexity:.3f} as written, {found.full_perplexity:.3f} by full depth: "
            f"ratio {ratio:.3f}",
        )
    )
    if found.speedup is not None and found.seconds_saved is not None:
        saved = found.seconds_saved
        pairs.append(
            (
                "seconds saved" if saved >= 0 else "seconds lost",
                f"about {abs(saved):.2f} of {reply.stats.decode_s + saved:.2f} "
                f"({found.speedup:.2f}× the speed of full depth, {found.steps_timed} steps timed)",
            )
        )
    return pairs


def where_they_differ(old: ChatMessage, before: "Reply | None", new: "Reply") -> str:
    """At which token two replies to the same message first differ."""
    if before is None:  # written in an earlier session, so only its text is known
        same = old.content == new.text
        return "the same text as before" if same else "not the same text as before"
    pairs = zip(before.tokens, new.tokens, strict=False)
    step = next((at for at, (a, b) in enumerate(pairs) if a.token_id != b.token_id), None)
    shorter = min(len(before.tokens), len(new.tokens))
    if step is None and len(before.tokens) == len(new.tokens):
        return f"the same {shorter:,} token{'' if shorter == 1 else 's'} as before"
    if step is None:
        return f"the same as before up to token {shorter:,}, where the shorter reply ends"
    was, now = (_word_at(reply.pieces, step) for reply in (before, new))
    return f'first different token: {step:,}, "{was}" before, "{now}" now'


def _word_at(pieces: list[str], step: int) -> str:
    return " ".join("".join(pieces[step : step + 6]).split())[:40]


def listing(found: list[transcript.Summary]) -> list[tuple[str, ...]]:
    """Rows for a table of conversations."""
    from datetime import datetime

    return [
        (
            one.id,
            f"{datetime.fromtimestamp(one.changed):%Y-%m-%d %H:%M}",
            "" if one.problem else str(len(one.messages)),
            one.model or "",
            one.problem or one.title[:60],
        )
        for one in found
    ]
