"""What ranks say to each other: requests of rank 0, and the others' answers.

Requests are broadcast: a JSON object, and tensors. Answers go through torchrun's key-value store.
Nothing is unpickled. A third way, the watch, carries the last words of a rank that ends, and tells
rank 0 when one is gone. Knows nothing of models.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from d3cli.base.errors import D3Error, one_line
from d3cli.base.launch import LOSS, Launch
from d3cli.model.ranks.network import notice_silence, use_interface

# Rank 0 may wait for its user as long as it likes. A rank that ends is noticed at once.
FOREVER = timedelta(days=365)
# Seconds to reach the store, and for all ranks to come.
CONNECTING, COMING = timedelta(seconds=120), 300.0
# Bytes that are broadcast first: the length of a request and its beginning.
HEADER, LENGTH = 4096, 4
LAST_WORDS = 512  # bytes
POLL_S = 0.01
# Seconds for a rank that is lost to be noticed.
NOTICING = 1.0
# Seconds that a rank may take to end once it has lost another. torchrun asks it to end as well.
PATIENCE = 2.0

BEGIN, END = "begin", "end"


class Channel:
    """The ways between this rank and the others.

    Args:
        d3_version: must be the same in all ranks.
        give_up: is called on a thread if this rank still runs long after one that it watches has
            ended: it hangs in a product that needs the other.

    Raises:
        D3Error: the store cannot be reached.
    """

    def __init__(
        self, launch: Launch, d3_version: str, give_up: Callable[[], None] | None = None
    ) -> None:
        self.launch, self._give_up = launch, give_up
        self._versions = versions(d3_version)
        self.has_begun = False
        self._closing = False
        self._watch: Any = None
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            self._store, _, _ = next(rendezvous("env://", timeout=CONNECTING))
        except (RuntimeError, ValueError) as error:  # torch's network errors are among them
            raise D3Error(
                f"rank {launch.rank} cannot meet the others at {place}: {one_line(error)[:160]}",
                "if another program uses the port, choose one: torchrun --master-port PORT, or "
                "--standalone for any free one",
            ) from error
        self._store.set_timeout(FOREVER)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"d3/{attempt}", self._store)

    # Before the process group exists.

    def say_hello(self) -> None:
        """Tells rank 0 that this rank has come, its versions and its backend."""
        self._store.set(f"hello/{self.launch.rank}", json.dumps(self._versions))

    def wait_to_begin(self) -> bool:
        """Waits for rank 0; returns whether it needs the others at all."""
        said = json.loads(self._store.get(BEGIN))
        if said == END:
            return False
        self._begin(said["backend"])
        return True

    def begin(self, backend: str) -> None:
        """Begins to work together.

        Args:
            backend: torch's name of it: "gloo", or "cpu:gloo,cuda:nccl".

        Raises:
            D3Error: a rank has not come, or has other versions or another backend.
        """
        own = self._versions
        for rank in range(1, self.launch.ranks):
            theirs = json.loads(self._wait_for(f"hello/{rank}", rank, COMING))
            different = [name for name in own if own[name] != theirs.get(name)]
            if different:
                raise D3Error(
                    f"rank {rank} has {_in_words(theirs, different)}, and rank 0 has "
                    f"{_in_words(own, different)}",
                    "install the same versions on all machines; run all ranks on GPUs, or none",
                )
        self._store.set(BEGIN, json.dumps({"backend": backend}))
        self._begin(backend)

    def dismiss(self, *, in_step: bool) -> None:
        """Lets the other ranks end; rank 0 calls it, and then ends.

        Args:
            in_step: whether they wait for a request. Else they end when rank 0 has ended.
        """
        self._closing = True
        if self.has_begun and in_step:
            self.send({"do": END})
        elif self.has_begun:
            for rank in range(1, self.launch.ranks):
                self.last_words(None, to=rank)
        else:
            self._store.set(BEGIN, json.dumps(END))

    def _begin(self, backend: str) -> None:
        launch = self.launch
        several_machines = launch.ranks > launch.ranks_here
        if several_machines:
            use_interface()
        dist.init_process_group(
            backend,
            store=PrefixStore("group", self._store),
            rank=launch.rank,
            world_size=launch.ranks,
            timeout=FOREVER,
        )
        self._watch = dist.new_group(backend="gloo", timeout=FOREVER)
        if several_machines:
            notice_silence()
        others = range(1, launch.ranks) if launch.rank == 0 else [0]
        for rank in others:
            threading.Thread(
                target=self._watch_rank, args=(rank,), name=f"watch-{rank}", daemon=True
            ).start()
        self.has_begun = True

    # Requests.

    def send(self, request: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> None:
        """Sends a request from rank 0 to all others."""
        forms = [[list(tensor.shape), str(tensor.dtype).split(".")[1]] for tensor in tensors]
        text = json.dumps({**request, "tensors": forms}).encode()
        whole = len(text).to_bytes(LENGTH, "big") + text
        dist.broadcast(_as_bytes(whole[:HEADER].ljust(HEADER, b"\0")), src=0)
        if len(whole) > HEADER:
            dist.broadcast(_as_bytes(whole[HEADER:]), src=0)
        for tensor in tensors:
            if tensor.numel():
                dist.broadcast(tensor.contiguous().flatten().view(torch.uint8), src=0)

    def receive(self, device: torch.device) -> tuple[dict[str, Any], list[Tensor]]:
        """Waits for a request of rank 0.

        Args:
            device: where its tensors are to be.
        """
        header = torch.empty(HEADER, dtype=torch.uint8)
        dist.broadcast(header, src=0)
        raw = header.numpy().tobytes()
        length = LENGTH + int.from_bytes(raw[:LENGTH], "big")
        if length > HEADER:
            rest = torch.empty(length - HEADER, dtype=torch.uint8)
            dist.broadcast(rest, src=0)
            raw += rest.numpy().tobytes()
        request: dict[str, Any] = json.loads(raw[LENGTH:length])
        tensors = []
        for shape, dtype in request.pop("tensors"):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            if tensor.numel():
                dist.broadcast(tensor.flatten().view(torch.uint8), src=0)
            tensors.append(tensor)
        return request, tensors

    # Answers.

    def answer(self, number: int, error: D3Error | None = None) -> None:
        """Answers a request of rank 0: done, or why not."""
        said = None if error is None else [error.message, error.hint]
        self._store.set(f"answer/{number}/{self.launch.rank}", json.dumps(said))

    def answers(self, number: int) -> None:
        """Waits for the answers of all others.

        Raises:
            D3Error: what one of them answers.
            RanksLost: one of them has ended.
        """
        failed = []
        for rank in range(1, self.launch.ranks):
            said = json.loads(self._wait_for(f"answer/{number}/{rank}", rank))
            if said is not None:
                failed.append(D3Error(f"rank {rank}: {said[0]}", said[1]))
        if failed:
            raise failed[0]

    def _wait_for(self, key: str, rank: int, seconds: float | None = None) -> bytes:
        """The value that another rank sets in the store."""
        until = None if seconds is None else time.monotonic() + seconds
        while not self._store.check([key]):
            if (lost := LOSS.found()) is not None:
                raise lost
            if until is not None and time.monotonic() > until:
                raise D3Error(
                    f"rank {rank} has not come within {seconds:.0f} s",
                    "see what its machine says; torchrun must run there with the same command",
                )
            time.sleep(POLL_S)
        return bytes(self._store.get(key))

    # The watch.

    def last_words(self, reason: str | None, to: int = 0) -> None:
        """Tells another rank that this one ends.

        Args:
            reason: why it has failed; None if it was asked to end.
        """
        if self._watch is None:
            return
        text = json.dumps(None if reason is None else reason[: LAST_WORDS // 8])
        with suppress(RuntimeError):  # rank 0 may be gone as well
            dist.send(_as_bytes(text.encode().ljust(LAST_WORDS)), dst=to, group=self._watch)

    def _watch_rank(self, rank: int) -> None:
        """Waits for the last words of a rank, on a thread of its own."""
        heard = torch.empty(LAST_WORDS, dtype=torch.uint8)
        reason: str | None = ""
        try:
            dist.recv(heard, src=rank, group=self._watch)
            reason = json.loads(heard.numpy().tobytes())
        except (RuntimeError, ValueError):  # it ended without a word
            pass
        if self._closing:
            return
        LOSS.note(rank, reason)
        if self._give_up is not None:
            time.sleep(PATIENCE)
            os.kill(os.getpid(), signal.SIGTERM)  # it may wait for its user, or for rank 0
            time.sleep(PATIENCE)
            self._give_up()


def versions(d3_version: str) -> dict[str, str]:
    """The versions and the backend that must be the same in all ranks."""
    return {
        "d3": d3_version,
        "torch": torch.__version__.split("+")[0],
        "transformers": version("transformers"),
        "backend": "nccl" if torch.cuda.is_available() else "gloo",
    }


def _in_words(found: Mapping[str, str], names: Sequence[str]) -> str:
    return " and ".join(f"{name} {found.get(name, 'of another time')}" for name in names)


def _as_bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
