"""The texts that a chat's commands show; those about two replies are in `comparison`."""

import math
from typing import TYPE_CHECKING

from d3cli.base.amounts import readable_size
from d3cli.cli.chat.settings import ChatSettings
from d3cli.cli.chat.totals import Totals
from d3cli.cli.format import agreement, draft_figures, speed
from d3cli.depth.calibration_record import form_in_words
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import PromptSchedule

if TYPE_CHECKING:
    from d3cli.decode.conversation import Conversation, ReplyOptions
    from d3cli.decode.reply import Reply

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
    if options.drafter is not None:
        return f"full depth, in the lossless mode; {drafts_in_words(options)}"
    if schedule.alpha == 1 or not schedule.units:
        return schedule.in_words()
    origin = str(source.in_words)
    if source is Source.PROMPT:
        origin += f"; {compared or 'nobody has measured what it costs'}"
    return f"{schedule.in_words()} ({origin})"


def lossless_in_words(options: "ReplyOptions") -> str:
    """Whether the lossless mode is on, and what drafts."""
    return "off" if options.drafter is None else f"on; {drafts_in_words(options)}"


def drafts_in_words(options: "ReplyOptions") -> str:
    """What drafts lossless replies."""
    assert options.drafter is not None
    schedule = options.schedule
    names = {"lookup": "lookup", "model": "the draft model", "depth": ""}
    if schedule.alpha < 1 and schedule.units:
        names["depth"] = f"less depth: {schedule.in_words()}"
    drafting = [names[source] for source in options.drafter.sources if names[source]]
    return f"drafts by {', '.join(drafting)}" if drafting else "nothing drafts"


def drafts_so_far(total: Totals) -> Rows:
    """What was drafted and accepted in all replies, and by what if several sources drafted."""
    if total.lossless is None:
        return []
    rows = [("so far", draft_figures(total.lossless))]
    sources = total.lossless.sources
    if len(sources) > 1:
        rows += [
            (f"by {name}", f"drafted {one.drafted:,}, accepted {one.accepted:,}")
            for name, one in sources.items()
        ]
    return rows


def skip_order(options: "ReplyOptions", reply: "Reply | None") -> str:
    """The order in which units are dropped: the present one, and the last reply's if another."""
    schedule = options.schedule
    before = () if reply is None else (reply.drafting or reply.schedule).skip_order
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
    drafts = options.drafter is not None
    legend = f"line: {drafts_in_words(options) if drafts else depth_in_words(options, compared)}"
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
        ("lossless", lossless_in_words(options)),
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
    drafts = reply.stats.lossless
    if drafts is not None and drafts.passes:
        parts.append(draft_figures(drafts))
    elif drafts is None and reply.stats.byte_ratio is not None:
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
        if reply.drafting is None and stats.layer_ratio and stats.byte_ratio:
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
    if total.lossless is not None:
        pairs.append(("lossless", draft_figures(total.lossless)))
    if total.compared:
        share = total.agreed / total.compared
        pairs.append(("agreement", f"{share:.1%} of {total.compared:,} tokens"))
    return pairs
