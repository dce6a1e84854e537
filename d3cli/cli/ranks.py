"""Commands under torchrun: rank 0 runs them, the other ranks follow.

Imports nothing heavy: torch's part is imported where several ranks really run.
"""

import os
import signal
import threading
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, NoReturn

from d3cli import __version__
from d3cli.base.errors import D3Error, UsageError, one_line
from d3cli.base.launch import LOSS, Launch, RanksLost, launched
from d3cli.cli import signals
from d3cli.cli.output import Output
from d3cli.kernels.process import stay_offline

if TYPE_CHECKING:
    from d3cli.model.ranks.channel import Channel
    from d3cli.model.ranks.leader import Leader

# Seconds for the news that another rank has ended, which made torchrun end this one.
NEWS = 0.5
ENDING = {128 + int(number) for number in (signal.SIGTERM, getattr(signal, "SIGHUP", 0))}

_TELLING = threading.RLock()


def leader() -> "Leader | None":
    """What makes the other ranks follow; None without torchrun.

    Raises:
        UsageError: torchrun has started a single rank.
        D3Error: the other ranks cannot be reached.
    """
    launch = launched()
    if launch is None:
        return None
    if launch.ranks < 2:
        raise UsageError(
            "torchrun has started one rank, and a model is split over at least two",
            "torchrun --nproc-per-node 2, or run d3 without torchrun",
        )
    return _leader(launch)


@cache
def _leader(launch: Launch) -> "Leader":
    from d3cli.model.ranks.leader import Leader

    return Leader(launch, __version__, _give_up)


def refuse(command: str) -> None:
    """Refuses a command that several ranks cannot run.

    Raises:
        UsageError: torchrun has started several.
    """
    launch = launched()
    if launch is not None and launch.ranks > 1:
        raise UsageError(f"{command} does not run on several ranks", "start it without torchrun")


def finish(code: int) -> int:
    """Ends the other ranks; rank 0 calls it when its command has ended.

    Returns:
        The exit code: 1 if another rank has ended and torchrun therefore ended this one.
    """
    launch = launched()
    if launch is None or launch.ranks < 2:
        return code
    if _is_lost(code):
        return 1
    if code and not _leader.cache_info().currsize:
        return code  # torchrun ends the others
    with suppress(D3Error, RuntimeError):  # the others are gone already
        _leader(launch).dismiss()
    return code


def on_signal(code: int) -> int:
    """The exit code of rank 0 where a signal ends it at once."""
    launch = launched()
    if _is_lost(code):
        return 1
    if launch is not None and _leader.cache_info().currsize:
        with suppress(RuntimeError):
            _leader(launch).part()
    return code


def _is_lost(code: int) -> bool:
    """Whether another rank has ended, which made torchrun end this one; tells the user."""
    lost = LOSS.found(NEWS) if code in ENDING else None
    if lost is not None:
        _tell(lost)
    return lost is not None


def _tell(lost: RanksLost) -> None:
    """Tells the user once; whoever comes second waits for it, since it may end the process."""
    with _TELLING:
        if LOSS.tell():
            Output().error(lost.message, lost.hint)


def _give_up() -> None:
    """Ends rank 0, which hangs since another rank has ended."""
    lost = LOSS.found()
    if lost is not None:
        _tell(lost)
    os._exit(1)


def follow(launch: Launch) -> NoReturn:
    """Runs a rank that is not the first, and ends the process."""
    # A signal cannot reach Python while torch waits, so a thread takes it.
    taken = {int(getattr(signal, name)) for name in signals.NAMES if hasattr(signal, name)}
    signal.pthread_sigmask(signal.SIG_BLOCK, taken)
    channels: list[Channel] = []

    def end() -> None:
        code = 128 + signal.sigwait(taken)
        if code in ENDING and _first_is_lost(launch):
            os._exit(1)
        for channel in channels:
            channel.last_words(None)
        os._exit(code)

    threading.Thread(target=end, name="signals", daemon=True).start()
    Output().quiet_libraries()
    stay_offline()  # rank 0 downloads
    os._exit(_follow(launch, channels))


def _follow(launch: Launch, channels: "list[Channel]") -> int:
    from d3cli.model.ranks.channel import NOTICING, Channel
    from d3cli.model.ranks.follower import Follower

    try:
        channel = Channel(launch, __version__, partial(os._exit, 1))
        channel.say_hello()
        if not channel.wait_to_begin():
            return 0
        channels.append(channel)
        Follower(channel).follow()
    except D3Error as error:  # this rank alone may fail to reach the others
        Output().error(error.message, error.hint)
        return 1
    except Exception as error:
        seconds = NOTICING if isinstance(error, RuntimeError) else 0
        if channels and not _first_is_lost(launch, seconds):
            channels[0].last_words(one_line(error))
        return 1
    return 0


def _first_is_lost(launch: Launch, seconds: float = NEWS) -> bool:
    """Whether rank 0 has ended, and so cannot say it; rank 1 tells the user."""
    lost = LOSS.found(seconds)
    if lost is not None and launch.rank == 1:
        _tell(lost)
    return lost is not None
