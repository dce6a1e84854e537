"""A depth schedule that falls along a straight line instead of by a power of alpha. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d3cli.base.errors import ScheduleError
from d3cli.depth.schedule import DepthSchedule, check_counts


@dataclass(frozen=True)  # not in slots, since super() would not find the class
class LinearSchedule(DepthSchedule):
    """Depth falls linearly with the token's position, from a maximum to a minimum.

    Token 1 aims at `highest` layers, token `until` and all later ones at the minimum depth. As in
    any `DepthSchedule`, a token drops the shortest prefix of the skip order that reaches its aim.
    `alpha` and `start` keep their defaults and mean nothing here.

    Attributes:
        highest: the maximum depth, in layers.
        until: the first token at the minimum depth.

    Raises:
        ScheduleError: as for `DepthSchedule`, or a bound is out of range.
    """

    highest: float = 0.0
    until: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(until=self.until)
        if (self.alpha, self.start) != (1.0, 0):
            raise ScheduleError("a linear depth schedule has neither an alpha nor a start")
        if not self.floor <= self.highest <= self.num_layers:
            raise ScheduleError(
                f"the maximum depth of {self.highest:g} layers is not between the minimum of "
                f"{self.floor:g} and the model's {self.num_layers}"
            )
        if self.until < 1:
            raise ScheduleError(f"the minimum depth begins at token {self.until}, before token 1")

    def target(self, t: int) -> float:
        """The depth on the line. Token 0 comes out of the prefill, at full depth."""
        if t < 1:
            return float(self.num_layers)
        if t >= self.until:
            return self.floor
        return self.highest - (self.highest - self.floor) * (t - 1) / (self.until - 1)

    def in_words(self) -> str:
        """What it does: "linear from 30 layers at token 1, down to 16 of 30 layers at token 63"."""
        if not self.skip_order or self.num_dropped(1) == self.max_dropped:
            return super().in_words()
        return (
            f"linear from {self.highest:.4g} layers at token 1, down to {self.floor:.4g} of "
            f"{self.num_layers} layers at token {self.until}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain object. A reader that knows only alpha finds none, and refuses it."""
        data = super().to_json()
        del data["alpha"], data["start"]
        return data | {"fall": "linear"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DepthSchedule":
        """As `DepthSchedule.from_json`."""
        return super().from_json({**data, "alpha": 1.0, "start": 0})
