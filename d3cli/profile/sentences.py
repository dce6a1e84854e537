"""A trace in plain sentences, for the terminal and for the HTML report."""

from collections.abc import Iterator, Sequence

from d3cli.base.amounts import readable_size
from d3cli.base.inert import quoted
from d3cli.depth.calibration_record import form_in_words
from d3cli.depth.choice import Source
from d3cli.depth.policies import Policy
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.units import UnitKind, units_in_words
from d3cli.profile import lossless_sentences
from d3cli.profile.summary import TOLERANCE, Needed, Spread, Summary
from d3cli.profile.trace import ReplyTrace, Trace

ENDS = {
    "stop": "ended by itself",
    "length": "was cut at the token limit",
    "context": "filled the context",
    "interrupted": "was interrupted",
}
# Above this share of tokens at the minimum depth, the search could not go low enough to tell.
MOSTLY = 0.9
# Units of an order that a sentence names; a real model has over a hundred.
NAMED = 12


def title(trace: Trace) -> str:
    """The model, and how it was loaded."""
    model = trace.model
    form = form_in_words(f"{model.dtype} {model.quantization or ''}".strip())
    return f"{model.name}, {form} on {model.device}, {model.num_layers} layers"


def policy(trace: Trace) -> str:
    """What chose the depth of each token: D³, or the rival that ran in its place."""
    name = trace.schedule.get("policy", Policy.D3)
    if name not in tuple(Policy):  # a newer d3 may know others
        return "another policy"
    return Policy(name).in_words


def schedule(trace: Trace) -> str:
    """What the depth schedule does, and its source."""
    words = trace.depth_schedule.in_words()
    if trace.lossless is not None:
        return words
    if (chosen_by := policy(trace)) != Policy.D3.in_words:
        words = f"{chosen_by}, {words}"
    source = trace.schedule.get("source")
    if isinstance(trace.depth_schedule, PromptSchedule) and source != Source.PROMPT:
        words += ", in each prompt's own order"
    if source not in tuple(Source):  # a newer d3 may know others
        return words
    return f"{words} ({Source(str(source)).in_words})"


def machine(trace: Trace) -> str:
    """Processor, threads, memory, GPU."""
    here = trace.machine
    threads = f"{here.threads} thread{'' if here.threads == 1 else 's'}"
    parts = [here.gpu or "", here.processor, threads, readable_size(here.memory_bytes)]
    return ", ".join(part for part in (*parts, here.system) if part)


def versions(trace: Trace) -> str:
    """The versions of the programs that made it."""
    return ", ".join(f"{name} {number}" for name, number in trace.versions.items() if number)


def sampling(trace: Trace) -> str:
    """How tokens were chosen."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    chosen = trace.sampling
    if not chosen.get("temperature"):
        penalty = chosen.get("repetition_penalty")
        return "greedy" + (f", repetition_penalty {penalty:g}" if penalty not in (None, 1) else "")
    seeds = sorted({reply.seed for reply in trace.replies if reply.seed is not None})
    words = [f"{name} {value:g}" for name in names if (value := chosen.get(name))]
    return ", ".join([*words, *(f"seed {seed}" for seed in seeds[:3])])


def options(trace: Trace) -> str:
    """The other options of the run; empty if there were none."""
    parts = ["no chat template"] if trace.raw else []
    if trace.think is not None:
        parts.append(f"thinking {'on' if trace.think else 'off'}")
    if trace.max_tokens is not None:
        parts.append(f"at most {trace.max_tokens:,} tokens")
    return ", ".join([*parts, *(f"stop at {quoted(text)}" for text in trace.stop)])


def spread(value: Spread, digits: int) -> str:
    """A mean, with its standard deviation if there were repeats."""
    text = f"{value.mean:,.{digits}f}"
    return text if value.sd is None else f"{text} ± {value.sd:,.{digits}f}"


def ratios(summary: Summary, replies: Sequence[ReplyTrace]) -> str:
    """The ratios by clock, layers and bytes; empty without a decode step."""
    if summary.layer_ratio is None or summary.byte_ratio is None:
        return ""
    text = f"{summary.byte_ratio:.2f}× by bytes"
    if summary.lossless is None:
        text = f"{summary.layer_ratio:.2f}× by layers, {text}"
    clocks = [reply.clock for reply in replies if reply.clock is not None]
    if len(clocks) == 1:
        [clock] = clocks
        return f"{clock.ratio:.2f}× by the clock ({clock.low:.2f} to {clock.high:.2f}), {text}"
    if clocks:
        low, high = min(c.ratio for c in clocks), max(c.ratio for c in clocks)
        return f"{low:.2f}× to {high:.2f}× by the clock, depending on the reply, {text}"
    return text


def sentences(summary: Summary, trace: Trace, replies: Sequence[ReplyTrace]) -> Iterator[str]:
    """Yields what the figures mean, one finding a sentence."""
    yield _lengths(summary, replies)
    if summary.mean_depth is None or summary.byte_ratio is None:
        yield "There was no decode step, so nothing ran below full depth."
        return
    layers = trace.model.num_layers
    if summary.lossless is not None:
        yield from lossless_sentences.sentences(summary.lossless, trace, replies)
        return
    if summary.layer_ratio == 1:
        yield f"Every token ran all {layers} layers."
    else:
        yield (
            f"A token ran {summary.mean_depth:.1f} of {layers} layers on average and at least "
            f"{summary.min_depth:.4g}. Compared with full depth, this is "
            f"{ratios(summary, replies)}. Including the repair of the KV cache afterwards, it is "
            f"{summary.byte_ratio_net:.2f}× by bytes."
        )
    if summary.bits is not None:
        yield (
            f"A token read {summary.bits:.1f} bits for each weight of the layers on average and at "
            f"least {summary.min_bits:.1f}; at full depth it is {summary.full_bits:.1f}."
        )
    if len(replies) == 1 and replies[0].skip_order is not None:
        yield _own_order(trace, replies[0])
    if trace.compared and summary.perplexity is not None:
        yield _quality(summary, policy(trace))
    if summary.needed is not None:
        yield from _needed(summary.needed, trace)


def _lengths(summary: Summary, replies: Sequence[ReplyTrace]) -> str:
    tokens = _count(summary.tokens, "token")
    if summary.replies != 1:
        return (
            f"The {summary.replies:,} replies have {tokens} in total; their prompts have "
            f"{summary.prompt_tokens:,}."
        )
    prompt = _count(summary.prompt_tokens, "token")
    [reply] = replies
    end = ENDS.get(reply.finish_reason, f"ended: {reply.finish_reason}")
    return f"The prompt has {prompt}. The reply has {tokens} and {end}."


def _own_order(trace: Trace, reply: ReplyTrace) -> str:
    """The order that the prompt decided, as far as the reply went in it."""
    order = trace.schedule_of(reply).skip_order
    if not order:
        return "The prompt was too short to decide an order of layers."
    most = max((token.dropped_units or 0 for token in reply.tokens), default=0)
    asked = trace.depth_schedule
    kind: UnitKind = asked.kind if isinstance(asked, PromptSchedule) else "layer"
    if not most:
        first = f"{units_in_words(kind, 1)} {order[0]}"
        return f"In the order of its prompt, {first} would have been dropped first."
    units = f"{units_in_words(kind, most)} {' '.join(order[: min(most, NAMED)])}"
    more = f" and {most - NAMED} more" if most > NAMED else ""
    return f"In the order of its prompt, the reply dropped {units}{more}."


def _quality(summary: Summary, chosen_by: str) -> str:
    full, ours = f"{summary.full_perplexity:.4g}", f"{summary.perplexity:.4g}"
    if summary.agreement is None:
        return (
            f"Perplexity is {ours} when decoded token by token and {full} when read in one pass. "
            "Both are at full depth, so the difference is only rounding."
        )
    text = (
        f"Of {_count(summary.compared, 'token')} below full depth, {summary.agreement:.1%} have "
        f"the same first choice as at full depth. Perplexity is {full} at full depth and {ours} "
        f"with {chosen_by}"
    )
    if summary.kl is not None:
        text += f"; the mean KL divergence is {max(0.0, summary.kl):.4f} nats per token"
    return f"{text}."


def _needed(needed: Needed, trace: Trace) -> Iterator[str]:
    yield (
        f"To choose as full depth does, tokens needed {needed.mean:.1f} of "
        f"{trace.model.num_layers} layers on average at constant depth; {needed.floor:.4g} is the "
        f"minimum that was tried. They ran {needed.given:.1f} on average, and {needed.enough:.1%} "
        "of them ran as many as they needed. By the logit lens, early exit would need "
        f"{needed.saturation:.1f}."
    )
    if needed.early is None or needed.late is None or needed.margin is None:
        yield "There are too few tokens to tell whether later ones need fewer layers."
        return
    difference, margin = needed.late - needed.early, needed.margin
    if abs(difference) > max(margin, TOLERANCE):
        verdict = "Later tokens need fewer layers, as D³ assumes"
        if difference > 0:
            verdict = "Later tokens need more layers, which contradicts D³'s assumption"
    elif needed.at_floor >= MOSTLY:
        verdict = (
            f"But {needed.at_floor:.1%} of the tokens needed only the minimum depth that was "
            "tried, so this says little about D³'s assumption"
        )
    else:
        verdict = "The difference may be chance, so this is no evidence for D³'s assumption"
    yield (
        f"Tokens needed {needed.early:.2f} layers in the first half of the reply and "
        f"{needed.late:.2f} in the second ({difference:+.2f} ± {margin:.2f}). {verdict}."
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
