"""Times of decode steps: full depth and a schedule in turn, and the parts of one step.

Full depth and the schedule read the same forced tokens from the same cache, so only the depth
differs. Knows nothing of text, or of how the figures are used.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from d3cli.decode.loop import decode_step, prefill
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document


@dataclass(slots=True)
class StepTimes:
    """Seconds of decode steps at full depth and at a schedule's own, interleaved.

    Iterate it to measure; it yields the share that is done. The timed steps are spread evenly over
    the reply. At each of them, full depth (A) and the schedule (B) run as ABBA, `rounds` times, so
    that other load on the machine affects both equally.

    Args:
        cache: must hold the prompt and all but the last token of the reply, at full depth. It will
            be cropped.
        document: the prompt and the reply.
        most_steps: time at most this many steps.

    Attributes:
        steps: the steps that are timed.
        full, own: for each of the ``2 * rounds`` pairs, the seconds of all timed steps together.
    """

    model: LoadedModel
    cache: KVCache
    document: Document
    schedule: DepthSchedule
    rounds: int
    most_steps: int
    steps: list[int] = field(init=False)
    full: list[float] = field(init=False)
    own: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.steps = spread_steps(len(self.document.response_ids), self.most_steps)
        self.full, self.own = [0.0] * 2 * self.rounds, [0.0] * 2 * self.rounds

    def __iter__(self) -> Iterator[float]:
        # From the last to the first: each step crops the cache.
        for number, step in enumerate(reversed(self.steps)):
            dropped = self.schedule.dropped(step)
            if not number:  # warm up: each depth once
                self._time(step, ())
                self._time(step, dropped)
            for pair in range(2 * self.rounds):
                if pair % 2 == 0:
                    self.full[pair] += self._time(step, ())
                    self.own[pair] += self._time(step, dropped)
                else:
                    self.own[pair] += self._time(step, dropped)
                    self.full[pair] += self._time(step, ())
            yield (number + 1) / len(self.steps)

    def _time(self, step: int, dropped: Sequence[str]) -> float:
        self.cache.crop(len(self.document.prompt_ids) + step - 1)
        began = _now(self.model.device)
        decode_step(self.model, self.cache, self.document.response_ids[step - 1], dropped)
        return _now(self.model.device) - began

    @property
    def ratios(self) -> list[float]:
        """Full depth's time over the schedule's, pair by pair."""
        return [full / own for full, own in zip(self.full, self.own, strict=True) if own > 0]


@dataclass(slots=True)
class PartTimes:
    """Seconds of each part of a decode step at full depth.

    Iterate it to measure; it yields the share that is done. On a GPU each part is waited for, so
    the parts add up to more than a step takes.

    Attributes:
        layers, attn, mlp: ``[steps][layers]``. `mlp` stays empty if the layers have no module for
            it.
        head, step: ``[steps]``, of the LM head and of the whole step.
    """

    model: LoadedModel
    cache: KVCache
    document: Document
    most_steps: int
    layers: list[list[float]] = field(default_factory=list)
    attn: list[list[float]] = field(default_factory=list)
    mlp: list[list[float]] = field(default_factory=list)
    head: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)

    def __iter__(self) -> Iterator[float]:
        steps = spread_steps(len(self.document.response_ids), self.most_steps)
        for number, step in enumerate(reversed(steps)):
            if not number:
                self._time(step, keep=False)  # warm up
            self._time(step, keep=True)
            yield (number + 1) / len(steps)

    def _time(self, step: int, *, keep: bool) -> None:
        model, family = self.model, self.model.gate.family
        stack = list(model.gate.layers)
        attn = [layer.get_submodule(family.attn) for layer in stack]
        mlp = [] if family.mlp is None else [layer.get_submodule(family.mlp) for layer in stack]
        self.cache.crop(len(self.document.prompt_ids) + step - 1)
        ids = torch.tensor([[self.document.response_ids[step - 1]]], device=model.device)
        with _timed([*stack, *attn, *mlp], model.device) as seconds:
            began = _now(model.device)
            hidden = model.hidden_states(ids, self.cache)
            between = _now(model.device)
            model.logits(hidden[0, -1])
            ended = _now(model.device)
        self.cache.commit(1, full_depth=True)
        if keep:
            count = len(stack)
            self.layers.append(seconds[:count])
            self.attn.append(seconds[count : 2 * count])
            if mlp:
                self.mlp.append(seconds[2 * count :])
            self.head.append(ended - between)
            self.step.append(ended - began)


@contextmanager
def _timed(modules: Sequence[nn.Module], device: torch.device) -> Iterator[list[float]]:
    """Inside this context, adds up the seconds that each module's forward calls take."""
    seconds, begun = [0.0] * len(modules), [0.0] * len(modules)

    def before(at: int) -> None:
        begun[at] = _now(device)

    def after(at: int) -> None:
        seconds[at] += _now(device) - begun[at]

    hooks = []
    for at, module in enumerate(modules):
        hooks.append(module.register_forward_pre_hook(lambda *_, at=at: before(at)))
        hooks.append(module.register_forward_hook(lambda *_, at=at: after(at)))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def fill_cache(model: LoadedModel, document: Document) -> KVCache:
    """Reads a prompt and all but the last token of its reply into a new cache, at full depth."""
    cache = model.new_cache()
    cache.reserve(len(document))
    for _ in prefill(model, cache, [*document.prompt_ids, *document.response_ids[:-1]]):
        pass
    return cache


def spread_steps(tokens: int, most: int) -> list[int]:
    """Decode steps ``1 .. tokens - 1`` of a reply: all, or the middles of `most` equal parts."""
    steps = tokens - 1
    if steps <= most:
        return list(range(1, tokens))
    return [1 + (2 * number + 1) * steps // (2 * most) for number in range(most)]


def _now(device: torch.device) -> float:
    """The time after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
