"""Two traces compared: how their settings differ, the first different token, ratios of figures."""

from collections.abc import Callable, Iterator
from typing import Any

from d3cli.base.inert import quoted
from d3cli.cli.format import aligned, cut, fixed
from d3cli.profile import lossless_sentences, sentences
from d3cli.profile.summary import Summary, mean, summarize
from d3cli.profile.trace import ReplyTrace, Trace

Measure = Callable[[Trace, Summary], float | None]
# The figures that are compared: name, value and digits.
MEASURES: tuple[tuple[str, Measure, int], ...] = (
    ("tokens", lambda _, one: one.tokens, 0),
    ("TTFT, s", lambda _, one: mean(one.ttft_s), 3),
    ("tok/s", lambda _, one: mean(one.tokens_per_second), 1),
    ("TPOT, ms", lambda _, one: one.tpot_ms, 2),
    ("TPOT p95, ms", lambda _, one: one.tpot_p95_ms, 2),
    ("mean depth", lambda _, one: one.mean_depth, 2),
    ("byte ratio", lambda _, one: one.byte_ratio, 3),
    ("perplexity", lambda _, one: one.perplexity, 4),
    ("agreement", lambda _, one: one.agreement, 4),
    ("KL", lambda _, one: one.kl, 4),
    ("drafts accepted", lambda _, one: one.lossless.accepted_share if one.lossless else None, 4),
    ("tokens a pass", lambda _, one: one.lossless.tokens_per_pass if one.lossless else None, 2),
    ("needed depth", lambda _, one: one.needed.mean if one.needed else None, 2),
    ("peak memory, GB", lambda trace, _: trace.peak_memory_bytes / 1e9, 3),
)


def against_json(ours: Trace, theirs: Trace) -> dict[str, Any]:
    """The comparison as a plain object: docs/trace.md."""
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
    """The comparison as tables."""
    data = against_json(ours, theirs)
    digits = {name: places for name, _, places in MEASURES}
    rows = [
        (
            name,
            fixed(one["from"], digits[name]),
            fixed(one["against"], digits[name]),
            fixed(one["ratio"], 3),
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
    """Yields the settings in which two runs differ."""
    pairs = {
        "model": (ours.model.name, theirs.model.name),
        "weights": (ours.model.fingerprint, theirs.model.fingerprint),
        "loaded as": (
            f"{ours.model.dtype} {ours.model.quantization or ''}".strip(),
            f"{theirs.model.dtype} {theirs.model.quantization or ''}".strip(),
        ),
        "policy": (sentences.policy(ours), sentences.policy(theirs)),
        "depth": (ours.depth_schedule.in_words(), theirs.depth_schedule.in_words()),
        "drafts": (lossless_sentences.drafts(ours), lossless_sentences.drafts(theirs)),
        "skip order": (_orders(ours), _orders(theirs)),
        "sampling": (sentences.sampling(ours), sentences.sampling(theirs)),
        "options": (sentences.options(ours), sentences.options(theirs)),
        "machine": (sentences.machine(ours), sentences.machine(theirs)),
        "versions": (sentences.versions(ours), sentences.versions(theirs)),
        "prompts": (
            [reply.prompt_sha256 for reply in ours.replies],
            [reply.prompt_sha256 for reply in theirs.replies],
        ),
    }
    for name, (one, other) in pairs.items():
        if one != other:
            short = isinstance(one, str) and name not in ("weights", "versions")
            yield f"{name}: {one or 'none'} | {other or 'none'}" if short else name


def _orders(trace: Trace) -> list[tuple[str, ...]]:
    """The skip orders of the replies that ran, without repetition."""
    return list(dict.fromkeys(trace.schedule_of(reply).skip_order for reply in trace.replies))


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
    shown = [cut(quoted(text)) if text is not None else "nothing" for text in one["texts"]]
    return f"token {one['step']:,}: {shown[0]} | {shown[1]}"
