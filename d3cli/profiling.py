"""A profiled run: replies timed token by token from outside, then held beside full depth.

`Profiler` consumes the engine's iterator like any other caller, and can say what it has at any
moment, so that an interrupted run is recorded like a finished one. Knows nothing of terminals or
files.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from d3cli.chat_template import Message
from d3cli.clock import PartTimes, StepTimes, fill_cache
from d3cli.comparison import Comparison, compare
from d3cli.engine import Engine, GenerationChunk, Reply
from d3cli.errors import UsageError
from d3cli.machine import processor_name, system, versions
from d3cli.model import LoadedModel
from d3cli.needed_depth import constant_depth_choices, needed_depths, saturation_layers
from d3cli.sampling import SamplingParams
from d3cli.schedule import DepthSchedule
from d3cli.scoring import Document, Scorer
from d3cli.stats import peak_memory
from d3cli.trace import (
    ClockTrace,
    LayersTrace,
    LayerTime,
    MachineTrace,
    ModelTrace,
    RepeatTrace,
    ReplyTrace,
    TokenTrace,
    Trace,
)
from d3cli.units import parse_unit

# Of `--compare`: decode steps that are timed, and how often each is timed ABBA. The interval of
# the clock ratio comes from twice as many pairs.
TIMED_STEPS, ROUNDS = 16, 6
PART_STEPS = 24  # whose parts are timed
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: the conversation, and what the user asked last."""

    text: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """How replies are made, and what is measured of them.

    Attributes:
        source: where the schedule comes from, in a word.
        repeats: timed runs of each prompt. With two or more, one more run before them warms up.
        compare: hold each reply beside full depth, by value and by the clock.
        needed_order: the skip order whose nested family is searched for each token's needed
            depth; None leaves that out.
        layers: time a decode step part by part.
    """

    schedule: DepthSchedule
    source: str
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    chat_template: str | None = None
    think: bool | None = None
    raw: bool = False
    repeats: int = 1
    compare: bool = False
    needed_order: tuple[str, ...] | None = None
    layers: bool = False


def nested_family(model: LoadedModel, schedule: DepthSchedule, source: str) -> tuple[str, ...]:
    """The skip order that needed depths are searched along.

    The schedule's own; where that is the cautious default or full depth, all units that an
    explicit alpha would drop.

    Raises:
        UsageError: nothing can be dropped.
    """
    order = schedule.skip_order
    if not model.gate.family.can_skip:
        order = ()
    elif not order or source == "default":
        order = model.schedule(0.5).skip_order
    if not order:
        raise UsageError(
            "--needed has nothing to look at: no layer of this model may be dropped",
            "leave it out, or lower --core-first and --core-last",
        )
    return order


class Run:
    """One reply, timed. Iterate it for its chunks.

    Attributes:
        reply: the reply so far.
        number: 0 for the run that warms up, else which repeat it is.
        ms: milliseconds of each decode step so far; what its reader does in between is not in it.
    """

    def __init__(self, reply: Reply, number: int) -> None:
        self.reply, self.number = reply, number
        self.ms: list[float] = []
        self._cpu_s = 0.0

    def __iter__(self) -> Iterator[GenerationChunk]:
        chunks = iter(self.reply)
        while True:
            cpu, began = time.process_time(), time.perf_counter()
            chunk = next(chunks, None)
            ended = time.perf_counter()
            if chunk is None:
                return
            if chunk.token.step:  # token 0 came out of the prefill
                self.ms.append(1000 * (ended - began))
                self._cpu_s += time.process_time() - cpu
            yield chunk

    @property
    def is_whole(self) -> bool:
        """Whether the reply came to its end."""
        return self.reply.finish_reason != "interrupted"

    @property
    def decode_s(self) -> float:
        return math.fsum(self.ms) / 1000

    def record(self) -> RepeatTrace:
        """Its figures; it must have a token."""
        seconds = self.decode_s
        return RepeatTrace(
            ttft_s=self.reply.stats.ttft_s or 0.0,
            decode_s=seconds,
            cpu_percent=100 * self._cpu_s / seconds if seconds else None,
        )


@dataclass(slots=True)
class _Profiled:
    """One prompt, and what is known of its reply so far."""

    prompt: Prompt
    sampling: SamplingParams
    warm_up: Run | None = None
    runs: list[Run] = field(default_factory=list)
    comparison: Comparison | None = None
    needed: list[float] | None = None
    saturation: list[int] | None = None
    clock: ClockTrace | None = None
    layers: LayersTrace | None = None

    @property
    def first(self) -> Run | None:
        """The run whose tokens are shown; that which warms up where there is no other."""
        begun = [run for run in (*self.runs, self.warm_up) if run is not None]
        return next((run for run in begun if run.reply.tokens), begun[0] if begun else None)

    @property
    def document(self) -> Document | None:
        """Its reply as a document; None for one without a decode step, or cut short."""
        run = self.first
        if run is None or not run.is_whole or len(run.reply.tokens) < 2:
            return None
        return Document(run.reply.prompt_ids, [token.token_id for token in run.reply.tokens])


class Profiler:
    """Profiles prompts with one model, one after the other.

    Attributes:
        notes: what a user should know of how it went.
    """

    def __init__(self, model: LoadedModel, options: ProfileOptions) -> None:
        self.model, self.options = model, options
        self.notes: list[str] = []
        self._engine = Engine(model)
        self._profiled: list[_Profiled] = []
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._peak = 0

    def runs(self, prompt: Prompt) -> Iterator[Run]:
        """The runs of one prompt; each is to be iterated to its end before the next.

        Raises:
            PromptError, UsageError, ModelError: as for `Engine.stream`.
        """
        options = self.options
        profiled = _Profiled(prompt, options.sampling.with_seed())
        self._profiled.append(profiled)
        for number in range(0 if options.repeats > 1 else 1, options.repeats + 1):
            run = self._start(profiled, number)
            if number:
                profiled.runs.append(run)
            else:
                profiled.warm_up = run
            yield run
            self._peak = max(self._peak, peak_memory(self.model.device))
            if number > 1 and not _same_tokens(run, profiled.runs[0]):
                profiled.runs.pop()
                self.notes.append(f"repeat {number} gave other tokens, and does not count")
        profiled.warm_up = None

    def _start(self, profiled: _Profiled, number: int) -> Run:
        options, prompt = self.options, profiled.prompt
        self._engine.cache.crop(0)  # each run reads its whole prompt
        reply = self._engine.stream(
            prompt.text if options.raw else prompt.messages,
            schedule=options.schedule,
            sampling=profiled.sampling,
            max_tokens=options.max_tokens,
            stop=options.stop,
            chat_template=options.chat_template,
            think=options.think,
            raw=options.raw,
        )
        return Run(reply, number)

    def examine(self) -> Iterator[tuple[str, float]]:
        """Measures what was asked for beyond the replies; gives what is done, and the share.

        Raises:
            GenerationError: the model's logits are not finite.
        """
        self._engine.cache = self.model.new_cache()  # what is measured below has its own
        found = [(one, one.document) for one in self._profiled]
        whole = [(one, document) for one, document in found if document is not None]
        for number, (profiled, document) in enumerate(whole, start=1):
            name = f" of reply {number} of {len(whole)}" if len(whole) > 1 else ""
            for what, share in self._examine(profiled, document):
                yield f"{what}{name}", share

    def _examine(self, profiled: _Profiled, document: Document) -> Iterator[tuple[str, float]]:
        options, model = self.options, self.model
        if options.compare:
            yield "full depth's values", 0.0
            [[profiled.comparison]] = compare(model, [document], [options.schedule])
        if options.needed_order is not None:
            yield from self._find_needed(profiled, document, options.needed_order)
        if not (options.compare or options.layers):
            return
        cache = fill_cache(model, document)
        if options.compare:
            times = StepTimes(model, cache, document, options.schedule, ROUNDS, TIMED_STEPS)
            for share in times:
                yield "full depth's time", share
            profiled.clock = clock_trace(times)
        if options.layers:
            # The steps above have cropped it.
            cache = fill_cache(model, document) if options.compare else cache
            parts = PartTimes(model, cache, document, PART_STEPS)
            for share in parts:
                yield "time by layer", share
            profiled.layers = _layers_trace(parts)

    def _find_needed(
        self, profiled: _Profiled, document: Document, order: Sequence[str]
    ) -> Iterator[tuple[str, float]]:
        choices: list[Tensor] = []
        scorer = Scorer(self.model, [document])
        for choice in constant_depth_choices(self.model, scorer, order):
            choices.append(choice)
            yield "needed depth", len(choices) / (len(order) + 1)
        settled: list[int] = []
        for count, settled in saturation_layers(self.model, document):  # noqa: B007 - the last
            yield "logit lens", count / self.model.num_layers
        profiled.needed = needed_depths(self.model, order, choices)
        profiled.saturation = settled

    def trace(self, *, interrupted: bool = False) -> Trace:
        """What was found so far."""
        model, options = self.model, self.options
        cuda = model.device.type == "cuda"
        sampling = asdict(options.sampling)
        del sampling["seed"]
        return Trace(
            created=self._created,
            interrupted=interrupted,
            versions=versions(),
            machine=MachineTrace(
                system=system(),
                processor=processor_name(),
                physical_cores=psutil.cpu_count(logical=False),
                logical_cores=psutil.cpu_count(),
                threads=torch.get_num_threads(),
                memory_bytes=psutil.virtual_memory().total,
                gpu=torch.cuda.get_device_name(model.device) if cuda else None,
            ),
            model=_model_trace(model),
            schedule=options.schedule.to_json() | {"source": options.source},
            sampling=sampling,
            max_tokens=options.max_tokens,
            compared=options.compare,
            needed_order=options.needed_order,
            peak_memory_bytes=self._peak or peak_memory(model.device),
            replies=tuple(
                self._reply_trace(profiled)
                for profiled in self._profiled
                if profiled.first is not None
            ),
        )

    def _reply_trace(self, profiled: _Profiled) -> ReplyTrace:
        run = profiled.first
        assert run is not None
        reply = run.reply
        whole = [run for run in profiled.runs if run.is_whole] or [run] * bool(reply.tokens)
        return ReplyTrace(
            prompt=profiled.prompt.text,
            prompt_tokens=len(reply.prompt_ids),
            finish_reason=reply.finish_reason,
            seed=None if profiled.sampling.is_greedy else profiled.sampling.seed,
            tokens=tuple(
                self._token_trace(profiled, reply, step, [run.ms for run in whole])
                for step in range(len(reply.tokens))
            ),
            repeats=tuple(run.record() for run in whole),
            clock=profiled.clock,
            layers=profiled.layers,
        )

    def _token_trace(
        self, profiled: _Profiled, reply: Reply, step: int, times: Sequence[Sequence[float]]
    ) -> TokenTrace:
        token, schedule = reply.tokens[step], self.options.schedule
        # A signal may have come between a token and its time.
        ms = [each[step - 1] for each in times if 0 < step <= len(each)]
        extra: dict[str, Any] = {}
        if profiled.comparison is not None:
            full_id = int(profiled.comparison.full_top_ids[step])
            extra |= {
                "full_logprob": _finite(profiled.comparison.full_log_probs[step]),
                "full_token_id": full_id,
                "full_text": self.model.tokenizer.decode([full_id]),
                "kl": _finite(profiled.comparison.kl[step]),
            }
        if step and profiled.needed is not None and profiled.saturation is not None:
            extra |= {
                "needed_depth": profiled.needed[step],
                "saturation_layer": profiled.saturation[step - 1],
            }
        return TokenTrace(
            step=step,
            token_id=token.token_id,
            text=reply.pieces[step],
            depth=token.depth,
            dropped_units=schedule.num_dropped(step) if step else 0,
            active_layers=active_layers(schedule, step),
            ms=fmean(ms) if ms else None,
            ms_sd=stdev(ms) if len(ms) > 1 else None,
            logprob=token.logprob,
            entropy=token.entropy,
            top_token_id=token.top_id,
            **extra,
        )


def active_layers(schedule: DepthSchedule, step: int) -> int:
    """Layers of which anything runs at a step."""
    dropped = [parse_unit(name) for name in schedule.dropped(step)]
    parts = [unit.layer for unit in dropped]
    gone = {unit.layer for unit in dropped if unit.part is None or parts.count(unit.layer) == 2}
    return schedule.num_layers - len(gone)


def clock_trace(times: StepTimes) -> ClockTrace:
    """The clock ratio and its interval."""
    from scipy.stats import bootstrap  # slow to import, and needed here alone

    ratios = times.ratios
    interval = bootstrap(
        (ratios,),
        np.median,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    count = len(times.steps)
    return ClockTrace(
        steps=count,
        rounds=times.rounds,
        full_ms=1000 * median(times.full) / count,
        own_ms=1000 * median(times.own) / count,
        ratios=tuple(ratios),
        ratio=median(ratios),
        low=float(interval.low),
        high=float(interval.high),
    )


def _layers_trace(parts: PartTimes) -> LayersTrace:
    def middle(values: Sequence[float]) -> float:
        return 1000 * max(0.0, median(values))

    layers = []
    for layer in range(len(parts.layers[0])):
        whole = [step[layer] for step in parts.layers]
        attn = [step[layer] for step in parts.attn]
        mlp = [step[layer] for step in parts.mlp] or [0.0] * len(whole)
        other = [w - a - m for w, a, m in zip(whole, attn, mlp, strict=True)]
        layers.append(
            LayerTime(
                attn=middle(attn), mlp=middle(mlp) if parts.mlp else None, other=middle(other)
            )
        )
    rest = [
        step - head - math.fsum(layers)
        for step, head, layers in zip(parts.step, parts.head, parts.layers, strict=True)
    ]
    return LayersTrace(
        steps=len(parts.step),
        layers=tuple(layers),
        head_ms=middle(parts.head),
        rest_ms=middle(rest),
    )


def _model_trace(model: LoadedModel) -> ModelTrace:
    key, weights = model.key, model.weight_bytes
    return ModelTrace(
        name=model.name,
        model_type=model.causal_lm.config.model_type,
        num_layers=model.num_layers,
        context_length=model.context_length,
        dtype=str(model.causal_lm.dtype).removeprefix("torch."),
        quantization=None if key is None else key.quantization,
        device=str(model.device),
        fingerprint=None if key is None else key.fingerprint,
        revision=None if key is None else key.revision,
        layer_bytes=tuple((layer.attn, layer.mlp, layer.other) for layer in weights.layers),
        fixed_bytes=weights.fixed,
    )


def _same_tokens(run: Run, first: Run) -> bool:
    ours = [token.token_id for token in run.reply.tokens]
    return ours == [token.token_id for token in first.reply.tokens]


def _finite(value: Tensor) -> float | None:
    """JSON has no NaN: below float32, dropping layers may leave a dtype's range."""
    number = float(value)
    return number if math.isfinite(number) else None
