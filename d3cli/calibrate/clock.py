"""How long a search has taken, how much of it is done, and when it must stop."""

import time
from dataclasses import dataclass, field


class OutOfTime(Exception):  # noqa: N818 - not an error: the search ends with what it has
    """The time that the user gave is over."""


@dataclass(slots=True)
class SearchClock:
    """The time and the work of one search.

    Attributes:
        deadline: seconds after `begun` at which `check` raises.
        positions: the expected work, in token positions at full depth.
        scored: the work so far; positions count by the share of the layers that ran.
    """

    deadline: float
    positions: float = 1.0
    begun: float = field(default_factory=time.monotonic)
    scored: float = 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    @property
    def share(self) -> float:
        """The share of the expected work that is done; at most 0.99, since it is an estimate."""
        return min(0.99, self.scored / self.positions)

    def check(self) -> None:
        """Raises OutOfTime after the deadline."""
        if self.elapsed > self.deadline:
            raise OutOfTime
