"""What a trace says, in plain sentences: the same in the terminal and in the HTML report."""

from collections.abc import Iterator, Sequence

from d3cli.base.inert import quoted
from d3cli.depth.choice import Source
from d3cli.profile.summary import TOLERANCE, Needed, Spread, Summary
from d3cli.profile.trace import ReplyTrace, Trace

ENDS = {
    "stop": "ended by itself",
    "length": "was cut at --max-tokens",
    "context": "filled the context",
    "interrupted": "was interrupted",
}


MOSTLY = 0.9  # of tokens at the least depth, from which on the search has hit its end


def title(trace: Trace) -> str:
    """The model and how it was loaded."""
    model = trace.model
    form = f"{model.dtype} {model.quantization}" if model.quantization else model.dtype
    return f"{model.name}, {form} on {model.device}, {model.num_layers} layers"


def schedule(trace: Trace) -> str:
    """What the depth schedule does, and where it comes from."""
    words = trace.depth_schedule.in_words()
    source = trace.schedule.get("source")
    if source not in tuple(Source):  # a newer d3 may know others
        return words
    return f"{words} ({Source(str(source)).in_words})"


def machine(trace: Trace) -> str:
    """Processor, threads, memory, GPU."""
    here = trace.machine
    threads = f"{here.threads} thread{'' if here.threads == 1 else 's'}"
    parts = [here.gpu or "", here.processor, threads, f"{here.memory_bytes / 1e9:.1f} GB"]
    return ", ".join(part for part in (*parts, here.system) if part)


def versions(trace: Trace) -> str:
    """What it was made with."""
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
    """What else was asked for; empty where nothing was."""
    parts = ["no chat template"] if trace.raw else []
    if trace.think is not None:
        parts.append(f"thinking {'on' if trace.think else 'off'}")
    if trace.max_tokens is not None:
        parts.append(f"at most {trace.max_tokens:,} tokens")
    return ", ".join([*parts, *(f"stop at {quoted(text)}" for text in trace.stop)])


def spread(value: Spread, digits: int) -> str:
    """A mean, with its standard deviation where there were repeats."""
    text = f"{value.mean:,.{digits}f}"
    return text if value.sd is None else f"{text} ± {value.sd:,.{digits}f}"


def ratios(summary: Summary, replies: Sequence[ReplyTrace]) -> str:
    """Clock, layers and bytes side by side; empty without a decode step."""
    if summary.layer_ratio is None or summary.byte_ratio is None:
        return ""
    text = f"{summary.layer_ratio:.2f}× by layers, {summary.byte_ratio:.2f}× by bytes"
    clocks = [reply.clock for reply in replies if reply.clock is not None]
    if len(clocks) == 1:
        [clock] = clocks
        return f"{clock.ratio:.2f}× by the clock ({clock.low:.2f} to {clock.high:.2f}), {text}"
    if clocks:
        low, high = min(c.ratio for c in clocks), max(c.ratio for c in clocks)
        return f"{low:.2f}× to {high:.2f}× by the clock, reply by reply, {text}"
    return text


def sentences(summary: Summary, trace: Trace, replies: Sequence[ReplyTrace]) -> Iterator[str]:
    """What the figures mean, one finding a sentence."""
    if summary.replies == 1:
        [reply] = replies
        end = ENDS.get(reply.finish_reason, f"ended: {reply.finish_reason}")
        yield (
            f"The prompt has {_count(summary.prompt_tokens, 'token')}, the reply "
            f"{_count(summary.tokens, 'token')}; it {end}."
        )
    else:
        yield (
            f"{_count(summary.replies, 'reply', 'replies')} together have "
            f"{_count(summary.tokens, 'token')}, their prompts {summary.prompt_tokens:,}."
        )
    if summary.mean_depth is None or summary.byte_ratio is None:
        yield "There was no decode step, so nothing ran below full depth."
        return
    layers = trace.model.num_layers
    if summary.layer_ratio == 1:
        yield f"Every token ran all {layers} layers."
    else:
        yield (
            f"A token ran {summary.mean_depth:.1f} of {layers} layers on average, "
            f"{summary.min_depth:.4g} at least. Against full depth that is "
            f"{ratios(summary, replies)}; net of repairing the KV cache afterwards, "
            f"{summary.byte_ratio_net:.2f}× by bytes."
        )
    if trace.compared and summary.perplexity is not None:
        yield _quality(summary)
    if summary.needed is not None:
        yield from _needed(summary.needed, trace)


def _quality(summary: Summary) -> str:
    full, ours = f"{summary.full_perplexity:.4g}", f"{summary.perplexity:.4g}"
    if summary.agreement is None:
        return (
            f"The reply has a perplexity of {ours} token by token, and of {full} read in one pass: "
            "both are full depth's, and rounding is all that differs."
        )
    text = f"Full depth gives the reply a perplexity of {full}, D³ one of {ours}"
    if summary.kl is not None:
        text += f"; D³ diverges from it by {max(0.0, summary.kl):.4f} nats a token (KL)"
    return (
        f"Of {_count(summary.compared, 'token')} below full depth, full depth would have made the "
        f"same first choice at {summary.agreement:.1%}. {text}."
    )


def _needed(needed: Needed, trace: Trace) -> Iterator[str]:
    yield (
        f"To choose as full depth does, tokens needed {needed.mean:.1f} of "
        f"{trace.model.num_layers} layers on average at constant depth ({needed.floor:.4g} is the "
        f"least that was tried), and were given {needed.given:.1f}; {needed.enough:.1%} had at "
        "least what they needed. By the logit lens, early exit would have needed "
        f"{needed.saturation:.1f}."
    )
    if needed.early is None or needed.late is None or needed.margin is None:
        yield "There are too few tokens to tell whether later ones need fewer layers."
        return
    difference, margin = needed.late - needed.early, needed.margin
    if abs(difference) > max(margin, TOLERANCE):
        verdict = "later tokens need fewer layers, as D³ presumes"
        if difference > 0:
            verdict = "later tokens need more layers, against D³'s premise"
    elif needed.at_floor >= MOSTLY:
        verdict = (
            f"but {needed.at_floor:.1%} make do with the least depth that was tried, so this "
            "tells little of D³'s premise"
        )
    else:
        verdict = "no difference that can be told from chance, so no evidence for D³'s premise here"
    yield (
        f"They needed {needed.early:.2f} layers in the first half of the reply, {needed.late:.2f} "
        f"in the second ({difference:+.2f}, ±{margin:.2f}): {verdict}."
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
