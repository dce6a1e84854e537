"""How deep each token of a reply runs: pure arithmetic, no torch.

D³ (Fan et al., arXiv 2503.08524, section 3) keeps about ``floor(L * alpha ** t)`` of ``L`` layers
for token ``t`` of a reply. This module turns that rule into *units* to drop. It knows nothing of
models: a unit is a name such as ``"12"`` (layer 12), ``"12.attn"`` (one sublayer of it) or
``"12.attn.lo"`` (the low plane of that), and a weight, its share of a layer.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from numbers import Integral, Real
from typing import Any

from d3cli.base.errors import ScheduleError, Setting
from d3cli.base.json_rows import convert_json
from d3cli.depth.units import Part, Unit, WeightBytes, parse_unit

# The sum of weights such as 0.3 and 0.7 must count as one whole layer despite rounding.
TOLERANCE = 1e-9
# More layers than any model has, and all units of one layer. Beyond them, a file is damaged.
MOST_LAYERS, MOST_UNITS = 10_000, 4


class _Computed:
    """Holds what follows from a schedule's fields, so that it is no field itself.

    Attributes:
        _dropped_weight: element n is the weight of the first n units of the skip order.
    """

    __slots__ = ("_dropped_weight",)
    _dropped_weight: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DepthSchedule(_Computed):
    """Which units each token of a reply drops.

    ``depth(t)`` is about ``max(C, floor(L * alpha ** max(0, t - start)))``. It is exactly that for
    whole layers; with parts of layers it is the nearest depth from above that a prefix of
    `skip_order` reaches. There is one order, and `alpha` is at most 1, so the dropped sets grow
    with ``t`` and never shrink.

    Attributes:
        num_layers: ``L``, the model's decoder layers.
        alpha: decay per token, ``0 < alpha <= 1``; 1 is the plain model.
        start: tokens at full depth before the decay begins.
        core_first, core_last: layers at each end of which `skip_order` names only low planes.
        skip_order: units in the order in which they are dropped.
        weights: the weight of each unit, in layers, without what was dropped before it; may be left
            out for whole layers.

    Raises:
        ScheduleError: a field is out of range, or the order names a core layer, a layer that the
            model does not have, a part twice, or a low plane after its sublayer.
    """

    num_layers: int
    alpha: float = 1.0
    start: int = 0
    core_first: int = 0
    core_last: int = 0
    skip_order: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._check_numbers()
        if len(self.skip_order) > MOST_UNITS * self.num_layers:  # before each is looked at
            raise ScheduleError(
                f"{len(self.skip_order):,} units in the skip order of {self.num_layers} layers"
            )
        units = [parse_unit(name) for name in self.skip_order]
        if not self.weights and all(unit.kind == "layer" for unit in units):
            object.__setattr__(self, "weights", (1.0,) * len(units))
        self._check_order(units)
        object.__setattr__(self, "_dropped_weight", tuple(accumulate(self.weights, initial=0.0)))

    def _check_numbers(self) -> None:
        if not 1 <= self.num_layers <= MOST_LAYERS:
            raise ScheduleError(
                f"a model of {self.num_layers:,} layers cannot have a depth schedule"
            )
        check_alpha(self.alpha)
        check_counts(start=self.start, core_first=self.core_first, core_last=self.core_last)
        if not (0.0 < self.alpha <= 1.0):
            raise ScheduleError(
                (Setting("alpha"), f" is {self.alpha:g}, outside (0, 1]"),
                "1 is full depth; 0.999 is a gentle decay, 0.99 a steep one",
            )
        if self.start < 0:
            raise ScheduleError(
                (Setting("start"), f" is {self.start}"), "it must be 0 tokens or more"
            )
        for name, size in (("core_first", self.core_first), ("core_last", self.core_last)):
            if size < 0:
                raise ScheduleError((Setting(name), f" is {size}"), "it must be 0 layers or more")
        if self.core_first + self.core_last > self.num_layers:
            raise ScheduleError(
                f"{self.core_first} + {self.core_last} core layers do not fit a model of "
                f"{self.num_layers} layers",
                ("lower ", Setting("core_first"), " or ", Setting("core_last")),
                field="core_first" if self.core_first > self.core_last else "core_last",
            )

    def _check_order(self, units: list[Unit]) -> None:
        if len(self.weights) != len(units):
            raise ScheduleError(
                f"{len(units)} units in the skip order, but {len(self.weights)} weights",
                "a skip order with parts of layers needs one weight for each unit",
            )
        lost: dict[int, float] = {}  # the weight that each layer has lost
        seen: set[Unit] = set()
        for name, unit, weight in zip(self.skip_order, units, self.weights, strict=True):
            if unit.layer >= self.num_layers or not (unit.low or self._is_flex(unit.layer)):
                raise ScheduleError(
                    f"the skip order names layer {unit.layer}, which is not a flex layer "
                    f"({self.core_first} to {self.num_layers - self.core_last - 1})"
                )
            if unit in seen:
                raise ScheduleError(f"the skip order names {name} twice")
            if seen.intersection(unit.barred_by):
                raise ScheduleError(
                    f"the skip order names {name} after another unit of layer {unit.layer} that "
                    "contains it or is part of it"
                )
            before = lost.get(unit.layer, 0.0)
            after = lost[unit.layer] = before + weight
            whole = unit.part is None
            if not weight > 0.0 or after > 1.0 + TOLERANCE or (whole and after < 1.0 - TOLERANCE):
                raise ScheduleError(f"a unit of layer {unit.layer} has the weight {weight:g}")
            seen.add(unit)
        attention_goes = {u.layer for u in units if u.part is not Part.MLP and not u.low}
        if len(attention_goes) == self.num_layers:
            raise ScheduleError(
                "the skip order drops every layer's attention",
                "keep at least one core layer",
            )

    def _is_flex(self, layer: int) -> bool:
        return self.core_first <= layer < self.num_layers - self.core_last

    @classmethod
    def full(cls, num_layers: int) -> "DepthSchedule":
        """Full depth for every token: the plain model."""
        return cls(num_layers)

    @property
    def units(self) -> tuple[str, ...]:
        """The units that may be dropped."""
        return self.skip_order

    @property
    def max_dropped(self) -> int:
        """How many units may be dropped at once."""
        return len(self.skip_order)

    @property
    def floor(self) -> float:
        """The minimum depth, ``C``: what remains when the whole skip order is dropped."""
        return self.num_layers - self._dropped_weight[-1]

    def target(self, t: int) -> float:
        """The depth that token `t` aims at: it drops no unit more than that needs."""
        return self.num_layers * self.alpha ** max(0, t - self.start)

    def num_dropped(self, t: int) -> int:
        """How many units, from the front of the skip order, token `t` drops."""
        needed = self.num_layers - self.target(t) - TOLERANCE
        return min(bisect_left(self._dropped_weight, needed), len(self.skip_order))

    def dropped(self, t: int) -> tuple[str, ...]:
        """The units that token `t` drops: a prefix of the skip order."""
        return self.skip_order[: self.num_dropped(t)]

    def depth(self, t: int) -> float:
        """Layers used for token `t`: `num_layers` minus the weight dropped."""
        return self.num_layers - self._dropped_weight[self.num_dropped(t)]

    def prefix_lengths(self, prompt_len: int, new_tokens: int) -> dict[str, int]:
        """The positions that each unit of the skip order runs on, in one teacher-forced pass.

        The pass holds ``prompt_len + new_tokens - 1`` positions. A unit runs on the first
        ``prompt_len + n`` of them, where ``n + 1`` is the first token that drops it.
        """
        lengths = dict.fromkeys(self.skip_order, prompt_len + max(0, new_tokens - 1))
        seen = 0
        for t in range(1, new_tokens):
            now = self.num_dropped(t)
            for name in self.skip_order[seen:now]:
                lengths[name] = prompt_len + t - 1
            seen = max(seen, now)
        return lengths

    def mean_depth(self, new_tokens: int) -> float:
        """Mean depth over the decode steps ``1 .. new_tokens - 1``; full depth without steps."""
        if new_tokens < 2:
            return float(self.num_layers)
        return math.fsum(self.depth(t) for t in range(1, new_tokens)) / (new_tokens - 1)

    def layer_ratio(self, new_tokens: int) -> float:
        """Full depth over mean depth, for a reply of `new_tokens`."""
        return self.num_layers / self.mean_depth(new_tokens)

    def byte_ratio(
        self, new_tokens: int, weight_bytes: WeightBytes, *, net_of_repair: bool = False
    ) -> float:
        """Bytes of weights read at full depth over those read under this schedule.

        `net_of_repair` adds the one full-depth read that repairing the KV cache costs later.
        """
        steps = max(0, new_tokens - 1)
        read_by = weight_bytes.read_by_dropped(self.skip_order)
        read = sum(read_by[self.num_dropped(t)] for t in range(1, new_tokens))
        return weight_bytes.ratio(steps, read, repairs=int(net_of_repair)) or 1.0

    def in_words(self) -> str:
        """What it does: "alpha 0.97 from token 8, down to 9 of 16 layers"."""
        if self.alpha == 1 or not self.skip_order:
            return f"full, all {self.num_layers} layers"
        if self.num_dropped(1) == self.max_dropped:
            return f"constant from token 1 on, {self._floor_in_words()}"
        start = f"alpha {self.alpha:g} from token {self.start}"
        return f"{start}, down to {self._floor_in_words()}"

    def _floor_in_words(self) -> str:
        """The minimum depth: "15 of 30 layers by weight, low planes only"."""
        low = [parse_unit(name).low for name in self.skip_order]
        lost_bits = (" by weight" if any(low) else "") + (", low planes only" if all(low) else "")
        return f"{self.floor:.4g} of {self.num_layers} layers{lost_bits}"

    def to_json(self) -> dict[str, Any]:
        """A plain object, in the same form wherever a schedule is written."""
        return asdict(self) | {"skip_order": list(self.skip_order), "weights": list(self.weights)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DepthSchedule":
        """Reads what `to_json` wrote. Unknown fields are ignored.

        Raises:
            ScheduleError: a field is missing, has the wrong type or is out of range.
        """
        damaged = "the stored depth schedule is damaged"
        if missing := {field.name for field in fields(cls)} - data.keys():
            raise ScheduleError(f"{damaged}: it has no {min(missing)}")
        try:
            return convert_json(data, cls)
        except ValueError as error:
            raise ScheduleError(f"{damaged}: {error}") from error


def check_alpha(alpha: object, hint: str = "it must be a number in (0, 1]") -> None:
    """Raises ScheduleError if alpha is not a number."""
    if not isinstance(alpha, Real) or isinstance(alpha, bool):
        raise ScheduleError((Setting("alpha"), f" is {alpha!r}"), hint)


def check_counts(**counts: object) -> None:
    """Raises ScheduleError if one of these settings is not a whole number."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool):
            raise ScheduleError((Setting(name), f" is {count!r}"), "it must be a whole number")


def schedule_of(
    weight_bytes: WeightBytes, order: Sequence[str], alpha: float, start: int
) -> DepthSchedule:
    """A schedule over a skip order; the core is the layers before the first and after the last.

    Low planes do not count: those of core layers may go as well.
    """
    num_layers = len(weight_bytes.layers)
    layers = [unit.layer for unit in map(parse_unit, order) if not unit.low]
    return DepthSchedule(
        num_layers,
        alpha,
        start,
        min(layers, default=0),
        num_layers - 1 - max(layers, default=num_layers - 1),
        tuple(order),
        weight_bytes.weights(order),
    )


def static_schedule(weight_bytes: WeightBytes, order: Sequence[str]) -> DepthSchedule:
    """A constant depth: drops the whole order from token 1 on."""
    before_last = sum(weight_bytes.weights(order[:-1]))
    # Slightly below the alpha at which the last unit goes, so that the first step drops them all.
    alpha = 1 - (before_last + 1e-4) / len(weight_bytes.layers)
    return schedule_of(weight_bytes, order, alpha, 0)
