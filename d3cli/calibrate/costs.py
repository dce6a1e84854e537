"""What a decode step costs in one form of the weights: bytes, and seconds as measured here.

The clock does not follow the bytes alone: kernels differ in speed, and a step has costs that no
dropped unit saves. So a schedule's time is predicted from measured steps: a step at full depth, and
steps without all units of one part.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import torch

from d3cli.decode.loop import decode_step
from d3cli.depth.units import LOW, Part, Unit, WeightBytes
from d3cli.kernels.quantization import Quantization
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.step_times import fill_cache

# Rounds of steps, each at full depth and without each part; no more after so many seconds.
ROUNDS, MIN_ROUNDS, LONG = 16, 4, 6.0
# Positions of the pass that shows how long a repair of the KV cache takes.
REPAIRED = 256


@dataclass(frozen=True, slots=True)
class StepCosts:
    """The bytes and the seconds of decode steps.

    Attributes:
        seconds: of a step at full depth.
        per_byte: seconds that a step saves for each byte of attention or MLP that it drops, without
            the low planes of nested weights.
        per_low_byte: the same for low planes; empty if there are none.
        repair: seconds for each token whose states a later turn computes again.
    """

    weight_bytes: WeightBytes
    seconds: float
    per_byte: Mapping[Part, float]
    repair: float
    per_low_byte: Mapping[Part, float] = field(default_factory=dict)

    def saved(self, order: Iterable[str]) -> list[float]:
        """Seconds that a step saves by dropping each unit of an order, after those before it."""
        return self.weight_bytes.marginal(order, self._seconds_of)

    def _seconds_of(self, unit: Unit) -> float:
        """Seconds of a unit and its low planes."""
        layer = self.weight_bytes.layers[unit.layer]
        seconds = 0.0
        for part in Part if unit.part is None else (unit.part,):
            low = layer.of(part, low=True)
            seconds += low * self.per_low_byte.get(part, 0.0)
            if not unit.low:
                seconds += (layer.of(part) - low) * self.per_byte[part]
        return seconds

    def reply_seconds(self, steps: int, saved: float, *, repairs: bool) -> float:
        """Seconds of a reply.

        Args:
            steps: its decode steps.
            saved: seconds that they save together.
            repairs: whether its tokens must be computed again later.
        """
        return steps * (self.seconds + repairs * self.repair) - saved


def costs_by_bytes(weight_bytes: WeightBytes, steps: int) -> StepCosts:
    """Costs as if time followed the bytes, for replies of so many steps."""
    total = weight_bytes.total
    per_byte = dict.fromkeys(Part, 1.0)
    return StepCosts(weight_bytes, total * 1.0, per_byte, total / steps, per_byte)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Compares replies in one form of the weights with those at full depth in another.

    Attributes:
        reference: the costs of full depth.
        costs: those of the form that runs.
        new_tokens: the length of the replies.
        quantization: of the form that runs; None as stored.
    """

    reference: StepCosts
    costs: StepCosts
    new_tokens: int
    quantization: Quantization | None = None

    def ratios(self, saved: float, seconds: float, *, repairs: bool = True) -> tuple[float, float]:
        """The byte ratio and the speed of a reply whose steps save bytes and seconds.

        Args:
            repairs: whether a later turn computes the reply's tokens again; in bytes, that is one
                more full-depth read.
        """
        steps = self.new_tokens - 1
        read = (steps + repairs) * self.costs.weight_bytes.total - saved
        took = self.costs.reply_seconds(steps, seconds, repairs=repairs)
        return (
            steps * self.reference.weight_bytes.total / read,
            steps * self.reference.seconds / took,
        )

    @property
    def full_depth(self) -> tuple[float, float]:
        """The byte ratio and the speed of full depth in the form that runs."""
        return self.ratios(0.0, 0.0, repairs=False)

    @property
    def without_low_planes(self) -> float:
        """The speed if no step reads a low plane."""
        order = self.costs.weight_bytes.unit_names("plane")
        steps = self.new_tokens - 1
        return self.ratios(0.0, steps * sum(self.costs.saved(order)), repairs=False)[1]


def measure_costs(model: LoadedModel, document: Document) -> StepCosts:
    """Times decode steps that follow a document, in turn with all and without some units."""
    cache, weight_bytes = fill_cache(model, document), model.weight_bytes
    without = _without(model)
    seconds: dict[_What, list[float]] = {what: [] for what in without}
    begun = time.monotonic()
    for number in range(ROUNDS + 1):
        for what, units in without.items():
            took = _time_step(model, cache, document, units)
            if number:  # the first round warms up
                seconds[what].append(took)
        if number >= MIN_ROUNDS and time.monotonic() - begun > LONG:
            break
    least = {what: min(times) for what, times in seconds.items()}  # the least disturbed

    def rate(what: "_What", before: "_What") -> float:
        """Seconds that a byte takes which is left out in `what`, but not `before`."""
        nbytes = weight_bytes.read(without[before]) - weight_bytes.read(without[what])
        return max(0.0, least[before] - least[what]) / nbytes

    low = {part: rate((part, True), FULL) for part in Part if (part, True) in without}
    rates = {
        part: rate((part, False), (part, True) if part in low else FULL)
        for part in Part
        if (part, False) in without
    }
    if Part.MLP not in rates:  # whole layers only: both parts at one rate
        rates = dict.fromkeys(Part, rates[Part.ATTN])
    return StepCosts(weight_bytes, least[FULL], rates, _time_repair(model, document), low)


# A part of all inner layers, and whether only its low planes are meant.
_What = tuple[Part | None, bool]
FULL: _What = (None, False)


def _without(model: LoadedModel) -> dict[_What, tuple[str, ...]]:
    """The units to leave out; whole layers, under ATTN, if there are no sublayers."""
    found: dict[_What, tuple[str, ...]] = {FULL: ()}
    inner = range(1, model.num_layers - 1)
    if not model.gate.family.has_sublayers:
        return found | {(Part.ATTN, False): tuple(map(str, inner))}
    for part in Part:
        names = [f"{layer}.{part}" for layer in inner]
        low = [f"{name}.{LOW}" for name in names if model.weight_bytes.has(f"{name}.{LOW}")]
        if low:
            found[part, True] = tuple(low)
        found[part, False] = (*low, *names)
    return found


def _time_step(
    model: LoadedModel, cache: KVCache, document: Document, dropped: Sequence[str]
) -> float:
    cache.crop(len(document) - 2)
    begun = _now(model)
    decode_step(model, cache, document.response_ids[-2], dropped)
    return _now(model) - begun


def _time_repair(model: LoadedModel, document: Document) -> float:
    """Seconds for each position of a pass over many."""
    count = min(REPAIRED, model.context_length)
    ids = list(islice(cycle([*document.prompt_ids, *document.response_ids]), count))
    tensor = torch.tensor([ids], device=model.device)
    took = []
    for _ in range(2):
        cache = model.new_cache()
        cache.reserve(count)
        begun = _now(model)
        model.hidden_states(tensor, cache)
        took.append(_now(model) - begun)
    return min(took) / count


def _now(model: LoadedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
