"""Rank 0: it decides everything, and the other ranks compute each pass with it.

A pass of a model that is split over ranks needs all of them. So before each pass, rank 0 sends what
the others need to compute the same: the tokens, the state of the KV cache, and which units run.
Nothing else that rank 0 does concerns them. Knows nothing of schedules, sampling or text.
"""

import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any

from torch import Tensor

from d3cli.base.errors import D3Error
from d3cli.base.launch import LOSS, Launch
from d3cli.files.names import ModelFiles
from d3cli.kernels.plan import Form
from d3cli.model.kv_cache import KVCache
from d3cli.model.load_plan import LoadOptions
from d3cli.model.ranks.channel import NOTICING, Channel

# Options of loading that are the same in all ranks.
SHARED = ("context", "force", "prompt_tokens", "reply_tokens")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Leader:
    """Sends requests to the other ranks.

    Args:
        d3_version, give_up: as for `Channel`.

    Raises:
        D3Error: the others cannot be reached.
    """

    def __init__(self, launch: Launch, d3_version: str, give_up: Callable[[], None]) -> None:
        self.launch = launch
        self._channel = Channel(launch, d3_version, give_up)
        self._numbers = count()
        self._caches: weakref.WeakKeyDictionary[KVCache, int] = weakref.WeakKeyDictionary()
        self._freed: list[int] = []
        self._in_step = True
        self._lock = threading.RLock()

    def dismiss(self) -> None:
        """Lets the other ranks end."""
        if LOSS.found() is None:
            self._channel.dismiss(in_step=self._in_step)

    def part(self) -> None:
        """Tells the other ranks that this one ends at once, wherever they are."""
        if self._channel.has_begun and LOSS.found() is None:
            self._channel.dismiss(in_step=False)

    @contextmanager
    def loading(
        self, files: ModelFiles, form: Form, threads: int | None, options: LoadOptions
    ) -> Iterator[None]:
        """Makes all ranks load a model: this one inside the context.

        Raises:
            D3Error: another rank cannot load it, or has another model of that name.
            RanksLost: another rank has ended.
        """
        if not self._channel.has_begun:
            on_gpu = form.device.type == "cuda"
            self._channel.begin("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        request = {
            "do": "find",
            "model": files.identity,
            "revision": files.revision,
            "fingerprint": files.fingerprint(),
            "dtype": str(form.dtype).removeprefix("torch."),
            "threads": threads,
            "options": {name: value for name, value in options.items() if name in SHARED},
        }
        number = next(self._numbers)
        with self._together({**request, "number": number}):
            pass
        self._channel.answers(number)
        number = next(self._numbers)
        # A signal ends the process at once meanwhile, and so the other ranks.
        failure: Exception | None = None
        with self._together({"do": "load", "number": number}, hold_signals=False):
            try:
                yield
            except Exception as error:  # the others have tried as well, and then wait
                failure = error
            try:
                self._channel.answers(number)
            except D3Error as error:
                failure = failure or error
        if failure is not None:
            raise failure

    @contextmanager
    def states(
        self,
        token_ids: Tensor,
        cache: KVCache | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        limits: Mapping[str, int],
        states: Mapping[str, Tensor],
    ) -> Iterator[None]:
        """The other ranks compute final hidden states; this one does inside the context."""
        optional = {"attention_mask": attention_mask, "position_ids": position_ids}
        given = {name: value for name, value in optional.items() if value is not None}
        request = {
            "do": "states",
            "cache": None if cache is None else self._describe(cache),
            "given": list(given),
            "limits": dict(limits),
            "states": list(states),
        }
        with self._together(request, [token_ids, *given.values(), *states.values()]):
            yield

    @contextmanager
    def logits(self, states: Tensor) -> Iterator[None]:
        """The other ranks compute logits of ``states``; this one does inside the context."""
        with self._together({"do": "logits"}, [states]):
            yield

    @contextmanager
    def without_units(self, token_ids: Tensor, units: Sequence[str]) -> Iterator[None]:
        """The other ranks run a pass that runs layers again without units, as this one does."""
        with self._together({"do": "without units", "units": list(units)}, [token_ids]):
            yield

    def _describe(self, cache: KVCache) -> dict[str, Any]:
        """Which cache it is, and what it holds before the pass."""
        if cache not in self._caches:
            self._caches[cache] = next(self._numbers)
            weakref.finalize(cache, self._freed.append, self._caches[cache])
        return {
            "number": self._caches[cache],
            "position": cache.position,
            "capacity": cache.capacity,
            "lengths": [layer.length for layer in cache.layers],
        }

    @contextmanager
    def _together(
        self, request: Mapping[str, Any], tensors: Sequence[Tensor] = (), hold_signals: bool = True
    ) -> Iterator[None]:
        """Sends a request; the others follow it while this rank is inside the context.

        Signals wait until then: a pass that ends halfway would leave the others in it.

        Raises:
            RanksLost: another rank has ended.
            D3Error: an earlier request failed halfway.
        """
        with self._lock:
            if not self._in_step:
                raise self._lost() or D3Error(
                    "the ranks are out of step, since something failed in the midst of a pass",
                    "start torchrun again",
                )
            freed = [self._freed.pop() for _ in range(len(self._freed))]
            try:
                with _held_signals(hold_signals):
                    self._in_step = False
                    self._channel.send({**request, "freed": freed}, tensors)
                    yield
                    self._in_step = True
            except Exception as error:
                if lost := self._lost(NOTICING):
                    raise lost from error
                raise

    def _lost(self, seconds: float = 0) -> BaseException | None:
        """The loss of another rank, if any. Then no signal may hide what is said about it."""
        lost = LOSS.found(seconds)
        if lost is not None and threading.current_thread() is threading.main_thread():
            for number in _numbers():
                signal.signal(number, signal.SIG_IGN)
        return lost


@contextmanager
def _held_signals(hold: bool) -> Iterator[None]:
    """Inside this context, signals are only noted. Afterwards they arrive."""
    if not hold or threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread alone
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    before: dict[int, Any] = {}
    try:
        for number in _numbers():
            before[number] = signal.getsignal(number)
            signal.signal(number, note)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in arrived:
            signal.raise_signal(number)


def _numbers() -> list[int]:
    return [int(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)]
