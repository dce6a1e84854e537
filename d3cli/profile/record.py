"""Turns a profiled run into a trace, at any moment, also after an interruption."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from statistics import fmean, median, stdev
from typing import Any

import psutil
import torch
from torch import Tensor

from d3cli.base.hardware import processor_name, system, versions
from d3cli.decode.reply import Reply
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import parse_unit
from d3cli.kernels.used import kernels_used
from d3cli.model.model import LoadedModel
from d3cli.profile.record_lossless import drafted_fields, drafting_trace, lossless_trace
from d3cli.profile.run import Profiled, ProfileOptions
from d3cli.profile.trace import ReplyTrace, TokenTrace, Trace
from d3cli.profile.trace_model import MachineTrace, ModelTrace
from d3cli.profile.trace_times import ClockTrace, LayersTrace, LayerTime
from d3cli.scoring.intervals import median_interval
from d3cli.scoring.step_times import PartTimes, StepTimes
from d3cli.text.control_tokens import skipped_tokens


def record_trace(
    model: LoadedModel,
    options: ProfileOptions,
    profiled: Sequence[Profiled],
    *,
    created: str,
    peak_memory_bytes: int,
    interrupted: bool,
) -> Trace:
    """The trace of these replies."""
    sampling = asdict(options.sampling)
    del sampling["seed"], sampling["rules"]
    sampling |= {
        name: value
        for name, value in options.sampling.rules.changed().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    along, drafting = options.needed_along, drafting_trace(options)
    schedule = options.schedule.to_json() | {"source": options.source, "policy": options.policy}
    if drafting is not None:
        schedule = DepthSchedule.full(model.num_layers).to_json() | {"source": Source.OFF}
    return Trace(
        created=created,
        interrupted=interrupted,
        versions=versions(),
        machine=_machine_trace(model),
        model=_model_trace(model),
        schedule=schedule,
        sampling=sampling,
        max_tokens=options.max_tokens,
        stop=options.stop,
        raw=options.raw,
        think=options.think,
        compared=options.compare,
        needed_order=None if along is None or _is_own(along) else along.units,
        peak_memory_bytes=peak_memory_bytes,
        replies=tuple(_reply_trace(options, one) for one in profiled if one.first is not None),
        lossless=drafting,
    )


def _reply_trace(options: ProfileOptions, profiled: Profiled) -> ReplyTrace:
    run = profiled.first
    assert run is not None
    reply = run.reply
    full_ids = [] if profiled.comparison is None else profiled.comparison.full_top_ids.tolist()
    full_choices = list(zip(full_ids, texts_instead(reply, full_ids), strict=True))
    whole = [run for run in profiled.runs if run.is_whole] or [run] * bool(reply.tokens)
    times, active = [run.token_ms for run in whole], active_layers(reply.schedule)
    by_prompt = isinstance(options.schedule, PromptSchedule) and options.drafting is None
    drafted = drafted_fields(reply)
    return ReplyTrace(
        prompt=profiled.prompt.text,
        prompt_sha256=sha256(" ".join(map(str, reply.prompt_ids)).encode()).hexdigest(),
        prompt_tokens=len(reply.prompt_ids),
        finish_reason=reply.finish_reason,
        seed=None if profiled.sampling.is_greedy else profiled.sampling.seed,
        tokens=tuple(
            _token_trace(profiled, reply, step, times, active, full_choices, drafted[step])
            for step in range(len(reply.tokens))
        ),
        repeats=tuple(run.record() for run in whole),
        clock=profiled.clock,
        layers=profiled.layers,
        skip_order=reply.schedule.skip_order if by_prompt else None,
        needed_order=profiled.needed_order if _is_own(options.needed_along) else None,
        lossless=lossless_trace(options, profiled, run),
    )


def _is_own(along: Schedule | None) -> bool:
    """Whether each reply has its own order for needed depths."""
    return isinstance(along, PromptSchedule)


def texts_instead(reply: Reply, token_ids: Sequence[int]) -> list[str]:
    """What each of these tokens would add to the reply's text, chosen at the step of its index."""
    special = {token_id: text for text, token_id in skipped_tokens(reply.model.tokenizer).items()}
    stream, texts = reply.new_detokenizer(special), []
    for token, other in zip(reply.tokens, token_ids, strict=False):
        texts.append(stream.peek(other))
        stream.push(token.token_id)
    return texts


def _token_trace(
    profiled: Profiled,
    reply: Reply,
    step: int,
    times: Sequence[Sequence[float]],
    active: Sequence[int],
    full_choices: Sequence[tuple[int, str]],
    drafted: dict[str, Any],
) -> TokenTrace:
    token, dropped = reply.tokens[step], reply.schedule.num_dropped(step)
    assert token.entropy is not None  # the profiler asks for it
    # A signal may arrive after a token is stored and before its time is.
    ms = [each[step - 1] for each in times if 0 < step <= len(each)]
    extra = dict(drafted)
    if profiled.comparison is not None:
        full_id, full_text = full_choices[step]
        extra |= {
            "full_logprob": _finite(profiled.comparison.full_log_probs[step]),
            "full_token_id": full_id,
            "full_text": full_text,
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
        dropped_units=dropped,
        active_layers=active[dropped],
        bytes_read=token.bytes_read,
        ms=fmean(ms) if ms else None,
        ms_sd=stdev(ms) if len(ms) > 1 else None,
        logprob=token.logprob,
        entropy=token.entropy,
        top_token_id=token.top_id,
        **extra,
    )


def active_layers(schedule: DepthSchedule) -> list[int]:
    """Layers of which at least one part runs, by the number of units dropped.

    One entry for each of ``0 .. len(skip_order)`` units.
    """
    active, halves = [schedule.num_layers], set[int]()
    for unit in map(parse_unit, schedule.skip_order):
        gone = not unit.low and (unit.part is None or unit.layer in halves)
        if not unit.low:
            halves.add(unit.layer)
        active.append(active[-1] - gone)
    return active


def clock_trace(times: StepTimes) -> ClockTrace:
    """The clock ratio and its interval."""
    ratios = times.ratios
    low, high = median_interval(ratios)
    count = len(times.steps)
    return ClockTrace(
        steps=count,
        rounds=times.rounds,
        full_ms=1000 * median(times.full) / count,
        own_ms=1000 * median(times.own) / count,
        ratios=tuple(ratios),
        ratio=median(ratios),
        low=low,
        high=high,
    )


def layers_trace(parts: PartTimes) -> LayersTrace:
    """Median times of each part."""

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
    key, weights = model.origin.key, model.weight_bytes
    return ModelTrace(
        name=model.name,
        model_type=model.causal_lm.config.model_type,
        num_layers=model.num_layers,
        context_length=model.context_length,
        dtype=model.dtype,
        quantization=model.origin.quantization,
        device=str(model.device),
        fingerprint=None if key is None else key.fingerprint,
        revision=None if key is None else key.revision,
        layer_bytes=tuple((layer.attn, layer.mlp, layer.other) for layer in weights.layers),
        fixed_bytes=weights.fixed,
        kernels=kernels_used(model.causal_lm),
        low_bytes=tuple((layer.attn_low, layer.mlp_low) for layer in weights.layers)
        if weights.is_nested
        else None,
        layer_weights=weights.layer_weights,
    )


def _machine_trace(model: LoadedModel) -> MachineTrace:
    cuda = model.device.type == "cuda"
    return MachineTrace(
        system=system(),
        processor=processor_name(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        gpu=torch.cuda.get_device_name(model.device) if cuda else None,
    )


def _finite(value: Tensor) -> float | None:
    """A number that JSON can hold, else None: below float32, dropping layers may overflow."""
    number = float(value)
    return number if math.isfinite(number) else None
