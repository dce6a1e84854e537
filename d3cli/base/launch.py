"""How torchrun has started this process, and what is known of the other ranks. No torch.

Under torchrun, several processes run one model together, each with a part of every weight. Rank 0
runs the command. The others follow it.
"""

import os
import threading
from dataclasses import dataclass

# torchrun sets the first one in every process that it starts.
LAUNCHED = "TORCHELASTIC_RUN_ID"
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class Launch:
    """One process among those that torchrun has started.

    Attributes:
        rank: its number, from 0.
        ranks: how many there are, on all machines.
        rank_here: its number among those on this machine.
        ranks_here: how many there are on this machine.
    """

    rank: int
    ranks: int
    rank_here: int
    ranks_here: int


def launched() -> Launch | None:
    """Which process this is among those that torchrun has started; None without torchrun."""
    if LAUNCHED not in os.environ:
        return None
    values = [os.environ.get(name, "") for name in NUMBERS]
    # A number of thousands of digits is none that torchrun has set, and Python refuses it.
    if not all(value.isascii() and value.isdecimal() and len(value) < 10 for value in values):
        return None
    return Launch(*map(int, values))


class RanksLost(BaseException):
    """Another rank has ended, so nothing can go on. Like KeyboardInterrupt, it is no Exception.

    Attributes:
        message: which one, and why if it said so.
    """

    hint = "start torchrun again; what it wrote itself above or below may say more"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Loss:
    """Whether another rank has ended before it was asked to; set on a thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._message = ""
        self._is_told = False

    def note(self, rank: int, reason: str | None = "") -> None:
        """Notes the first rank that has ended.

        Args:
            reason: why, if it said so; None if it was asked to end, which is no news to the user.
        """
        if not self._event.is_set():
            self._is_told = reason is None
            self._message = f"rank {rank} has ended{f': {reason}' if reason else ''}"
            self._event.set()

    def found(self, seconds: float = 0) -> RanksLost | None:
        """The loss; waits so long for news of it."""
        return RanksLost(self._message) if self._event.wait(seconds) else None

    def tell(self) -> bool:
        """Whether the user must still be told; True once."""
        told, self._is_told = self._is_told, True
        return not told


LOSS = Loss()  # of this process
