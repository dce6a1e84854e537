"""Profiled runs for tests: one of the built-in model, and some made by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

from d3cli.base.settings import BUILTIN
from d3cli.decode.draft.by_depth import DepthSource
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.choice import Source
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.profile.profiler import Profiler, nested_family
from d3cli.profile.run import Drafting, ProfileOptions, Prompt
from d3cli.profile.trace import ReplyTrace, TokenTrace, Trace
from d3cli.profile.trace_lossless import (
    DifferenceTrace,
    DraftingTrace,
    EqualityTrace,
    LosslessTrace,
    PassTrace,
)
from d3cli.profile.trace_model import MachineTrace, ModelTrace
from d3cli.profile.trace_times import RepeatTrace
from d3cli.scoring.documents import Document
from tests.decode.draft.fixed import Always

# Timing needs many rounds to be exact. Tests only need some.
FEW_ROUNDS = {"ROUNDS": 2, "TIMED_STEPS": 4, "PART_STEPS": 6, "REPLY_ROUNDS": 1}
NEW_FIELDS = ("bytes_read", "pass_number", "drafted_by", "rejected_text")  # since schema 1
STORY, SUM = "Tell me a story about a fox.", "What is 27 + 45?"
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "<!-- <script>",
    "' onmouseover='window.hacked=1",
    '<a href="javascript:window.hacked=1">x</a>',
    "{{ 7 * 7 }}{% include 'x' %}",
    "&lt;b&gt; &quot; %{customdata} ${7*7} `x`",
    "=HYPERLINK(1)",
    "\x1b[31mred\x1b[0m\x1b]52;c;aGFja2Vk\x07",
    "\u202eback\u2069 \u2028 \u0000",
    "日本語 e\u0301 👩‍👩‍👧",
    "\\ \n \t \r end",
)


def prompt(text: str) -> Prompt:
    return Prompt(text, ({"role": "user", "content": text},))


@cache
def builtin() -> LoadedModel:
    return load_model(BUILTIN, dtype="float32", device="cpu")


def profile(
    *texts: str, model: LoadedModel | None = None, **options: Any
) -> tuple[Profiler, Trace]:
    """Profiles prompts to the end, with a few rounds of timing."""
    model = model or builtin()
    schedule = options.pop("schedule", None) or model.schedule(0.97, start=4)
    profiler = Profiler(
        model,
        ProfileOptions(
            schedule=schedule,
            source=Source.FLAGS,
            sampling=options.pop("sampling", SamplingParams()),
            **options,
        ),
    )
    for text in texts:
        for run in profiler.runs(prompt(text)):
            for _ in run:
                pass
    with patch.multiple("d3cli.profile.profiler", **FEW_ROUNDS):
        for _ in profiler.examine():
            pass
    return profiler, profiler.trace()


@cache
def whole_trace() -> Trace:
    """Two replies of the built-in model, with every measurement."""
    schedule = builtin().schedule(0.97, start=4)
    along = nested_family(builtin(), schedule)
    return profile(STORY, SUM, max_tokens=40, compare=True, needed_along=along, layers=True)[1]


# Of 16 layers, so few that most drafts are wrong.
DRAFTS = DepthSchedule(16, 0.5, 0, 2, 2, tuple(map(str, range(2, 14))))


def always() -> Drafting:
    """Drafts by depth: no token, seven, fifteen and three in turn."""
    return Drafting(Always(DepthSource(builtin()), (3, 0, 7, 15)), "depth")


@cache
def lossless_trace() -> Trace:
    """Two lossless replies of the built-in model, compared with plain decoding."""
    return profile(STORY, SUM, max_tokens=40, compare=True, drafting=always(), schedule=DRAFTS)[1]


@cache
def first_document() -> Document:
    """The first reply of `whole_trace`, generated again."""
    trace = whole_trace()
    reply = Engine(builtin()).stream(
        trace.replies[0].prompt, schedule=trace.depth_schedule, max_tokens=40
    )
    list(reply)
    return Document(reply.prompt_ids, [token.token_id for token in reply.tokens])


def hostile_trace() -> Trace:
    """A valid trace in which every text is an attack."""
    whole = whole_trace()
    first = whole.replies[0]
    tokens = tuple(
        replace(
            token,
            text=HOSTILE[at % len(HOSTILE)],
            full_text=HOSTILE[-1 - at % len(HOSTILE)],
            full_token_id=token.top_token_id + 1,
        )
        for at, token in enumerate(first.tokens)
    )
    return replace(
        whole,
        model=replace(whole.model, name=HOSTILE[0], model_type=HOSTILE[1], dtype=HOSTILE[3]),
        machine=replace(whole.machine, processor=HOSTILE[4], system=HOSTILE[8]),
        versions={HOSTILE[0]: HOSTILE[8]},
        schedule=whole.schedule | {"source": HOSTILE[0]},
        replies=(
            replace(first, prompt=HOSTILE[0] + HOSTILE[8], finish_reason=HOSTILE[1], tokens=tokens),
            replace(whole.replies[1], prompt=HOSTILE[9]),
        ),
    )


def hostile_lossless_trace() -> Trace:
    """A valid trace of lossless replies in which every text of drafting is an attack."""
    whole = lossless_trace()
    first = whole.replies[0]
    tokens = tuple(
        replace(
            token,
            text=HOSTILE[at % len(HOSTILE)],
            rejected_text=None if token.rejected_text is None else HOSTILE[-1 - at % len(HOSTILE)],
        )
        for at, token in enumerate(first.tokens)
    )
    assert whole.lossless is not None
    return replace(
        whole,
        lossless=replace(whole.lossless, source="auto", draft_model=HOSTILE[0]),
        replies=(replace(first, tokens=tokens), *whole.replies[1:]),
    )


def as_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    """A written trace as 0.1.0 would have written it.

    There, tokens have no `bytes_read`, no reply has an order of its own, and no weights are nested.
    The kernels stay, if they are known.
    """

    def without_bits(data: dict[str, Any], figures: str) -> dict[str, Any]:
        known = data.get(figures, {}).items()
        found = {
            name: value for name, value in known if not name.endswith("bits") and name != "lossless"
        }
        return {figures: found} if figures in data else {}

    replies = [
        {
            name: value
            for name, value in reply.items()
            if name not in ("skip_order", "needed_order", "lossless")
        }
        | {
            "tokens": [
                {name: value for name, value in token.items() if name not in NEW_FIELDS}
                for token in reply["tokens"]
            ],
        }
        | without_bits(reply, "stats")
        for reply in data["replies"]
    ]
    new = ("kernels", "low_bytes", "layer_weights")
    model = {name: value for name, value in data["model"].items() if value or name not in new}
    totals = without_bits(data, "totals")
    found = data | {"schema": 1, "model": model, "replies": replies} | totals
    return {name: value for name, value in found.items() if name != "lossless"}


def made_trace(depths: list[float], ms: list[float], **tokens: list[Any]) -> Trace:
    """A trace of one reply: 4 layers of 10 bytes, 20 fixed bytes; layer 1 is dropped, then 2."""
    schedule = DepthSchedule(4, 0.9, 0, 1, 1, ("1", "2"))
    count = len(depths)
    reply = ReplyTrace(
        prompt="p",
        prompt_sha256="0",
        prompt_tokens=3,
        finish_reason="stop",
        tokens=tuple(
            TokenTrace(
                step=step,
                token_id=step,
                text=f"t{step}",
                depth=depths[step],
                dropped_units=round(4 - depths[step]),
                active_layers=round(depths[step]),
                bytes_read=20 + 10 * round(depths[step]),
                ms=ms[step - 1] if step else None,
                logprob=-1.0,
                entropy=0.5,
                top_token_id=step,
                **{name: values[step] for name, values in tokens.items()},
            )
            for step in range(count)
        ),
        repeats=(RepeatTrace(ttft_s=0.1, decode_s=sum(ms) / 1000),),
    )
    return Trace(
        created="2026-01-01T00:00:00+00:00",
        interrupted=False,
        versions={"d3cli": "0"},
        machine=MachineTrace(
            system="s",
            processor="p",
            physical_cores=1,
            logical_cores=1,
            threads=1,
            memory_bytes=10,
            gpu=None,
        ),
        model=ModelTrace(
            name="m",
            model_type="llama",
            num_layers=4,
            context_length=64,
            dtype="float32",
            quantization=None,
            device="cpu",
            fingerprint=None,
            revision=None,
            layer_bytes=((4, 6, 0),) * 4,
            fixed_bytes=20,
        ),
        schedule=schedule.to_json() | {"source": Source.FLAGS},
        sampling={"temperature": 0.0},
        max_tokens=None,
        needed_order=("1", "2") if "needed_depth" in tokens else None,
        peak_memory_bytes=5,
        replies=(reply,),
    )


def nested_trace(
    layers: int = 4,
    order: Sequence[str] = ("0.mlp.lo", "1.attn.lo", "1.mlp.lo", "1.mlp", "2"),
    *,
    scale: int = 1,
) -> Trace:
    """A trace of nested weights; each token drops one unit more.

    A layer has 4 + 6 bytes, of which 1 + 3 are low, and 20 weights, all times `scale`.
    """
    made = made_trace([4.0] * (len(order) + 1), [1.0] * len(order))
    model = replace(
        made.model,
        num_layers=layers,
        layer_bytes=((4 * scale, 6 * scale, 0),) * layers,
        low_bytes=((scale, 3 * scale),) * layers,
        fixed_bytes=20 * scale,
        layer_weights=20 * scale * layers,
    )
    weights = model.weight_bytes
    schedule = DepthSchedule(layers, 0.5, 0, 1, 1, tuple(order), weights.weights(order))
    tokens = tuple(
        replace(
            token,
            dropped_units=count,
            depth=layers - math.fsum(schedule.weights[:count]),
            bytes_read=weights.read(order[:count]),
        )
        for count, token in enumerate(made.replies[0].tokens)
    )
    reply = replace(made.replies[0], tokens=tokens)
    return replace(made, model=model, schedule=schedule.to_json(), replies=(reply,))


def made_lossless_trace() -> Trace:
    """As `made_trace`, lossless: a plain step, a draft of two of which one is accepted, a step."""
    whole = made_trace([4.0] * 5, [1.0] * 4)
    [reply] = whole.replies
    fields: list[dict[str, Any]] = [
        {},
        {"pass_number": 0},
        {"pass_number": 1, "drafted_by": "lookup", "bytes_read": 30},
        {"pass_number": 1, "rejected_text": "t9", "bytes_read": 30},
        {"pass_number": 2},
    ]
    drafts: list[tuple[int, int, tuple[int, ...]]] = [(1, 1, ()), (2, 2, (2, 9)), (4, 1, ())]
    passes = tuple(
        PassTrace(
            step=step,
            tokens=tokens,
            source="lookup" if drafted else None,
            draft_ids=drafted,
            accepted=tokens - 1,
            draft_ms=0.1,
            verify_ms=0.9,
        )
        for step, tokens, drafted in drafts
    )
    equality = EqualityTrace(
        replies=3,
        equal=2,
        difference=DifferenceTrace(
            step=3,
            token_id=3,
            text="t3",
            plain_token_id=9,
            plain_text="t9",
            gap=0.01,
            rounding=0.1,
        ),
    )
    pairs = zip(reply.tokens, fields, strict=True)
    full = DepthSchedule.full(4).to_json() | {"source": Source.OFF}
    return replace(
        whole,
        compared=True,
        schedule=full,
        lossless=DraftingTrace(source="auto", draft_model="m", schedule=full),
        replies=(
            replace(
                reply,
                tokens=tuple(replace(token, **field) for token, field in pairs),
                lossless=LosslessTrace(step_ms=1.0, passes=passes, equality=equality),
            ),
        ),
    )
