"""Faults of ``d3 serve``, for ``scripts/faults.py``: signals, kills, lost clients, limits."""

import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from fault_places import memory_group, small_file_system
from fault_runs import MEASURED, broken_files, problems
from serve_clients import CLIENTS, Client, GoneError, is_ready, leaves, whole

from tests.forks import Ended, Forks

STARTING = 90.0  # seconds, on a busy machine
ENDING = 120.0  # seconds after which a server that was told to end hangs


class Server:
    """A server in a child of `forks`, and its clients.

    Args:
        settings: what the child gets, as in `Forks.run`.

    Attributes:
        port: where it listens, or will.
        wrong: what the clients found.
    """

    def __init__(self, forks: Forks, *options: str, port: int = 0, **settings: Any) -> None:
        with socket.create_server(("127.0.0.1", port)) as free:
            self.port = int(free.getsockname()[1])
        self.wrong: list[str] = []
        self._forks = forks
        self._ended: Ended | None = None
        self._clients: list[threading.Thread] = []
        words = ("--port", str(self.port), "--max-tokens", "60", *options)

        def run() -> None:
            self._ended = forks.call(
                "tests.impatient.serve", *words, kill_after=STARTING + ENDING, **settings
            )

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def wait(self) -> bool:
        """Waits until it answers; returns whether it does."""
        until = time.monotonic() + STARTING
        while self._thread.is_alive() and time.monotonic() < until:
            if is_ready(self.port):
                return True
            time.sleep(0.05)
        return False

    def send(self, number: int) -> None:
        """Sends it a signal."""
        with suppress(psutil.Error, ProcessLookupError):
            for child in psutil.Process(self._forks.pid).children():
                os.kill(child.pid, number)

    def visit(self, rng: random.Random, count: int) -> None:
        """Starts so many clients of all kinds."""
        for _ in range(count):
            self.visit_as(rng.choice(CLIENTS), rng.random())

    def visit_as(self, visitor: Client, seed: float = 0) -> None:
        """Starts a client of one kind."""
        client = threading.Thread(target=self._visit, args=(visitor, seed))
        client.start()
        self._clients.append(client)

    def _visit(self, visitor: Client, seed: float) -> None:
        try:
            if wrong := visitor(self.port, random.Random(seed)):
                self.wrong.append(f"{visitor.__name__}: {wrong}")
        except GoneError:
            self.wrong.append("")  # counts where the server should have stayed
        except TimeoutError:
            self.wrong.append(f"{visitor.__name__} waits for ever")
        except Exception as error:
            self.wrong.append(f"{visitor.__name__}: {error!r}")

    def leave(self) -> None:
        """Waits for all clients."""
        for client in self._clients:
            client.join()

    def end(self, number: int = signal.SIGTERM) -> Ended:
        """Sends a signal; returns how the server and its clients have ended."""
        until = time.monotonic() + ENDING
        self.send(number)
        while self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.02)
        self.send(signal.SIGKILL)
        self._thread.join()
        self.leave()
        assert self._ended is not None
        return self._ended


def serve_signals(forks: Forks, rng: random.Random) -> Iterator[str]:
    """Signals at random moments of starting and of answering, while clients come and go."""
    with tempfile.TemporaryDirectory() as home:
        server = Server(forks, "--timeout", "60", env={"D3_HOME": home})
        names = rng.choices(("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE"), k=rng.randint(1, 2))
        if rng.random() < 0.8 and server.wait():
            server.visit(rng, rng.randint(0, 4))
        for name in names:
            time.sleep(rng.uniform(0, 1.5))
            server.send(int(getattr(signal, name)))
        ended = server.end()
        found = [*problems(ended, may_fail=False), *filter(None, server.wrong)]
        yield from (f"{', '.join(names)}: {problem}" for problem in found)
        yield from broken_files(Path(home))


def serve_kills(forks: Forks, rng: random.Random) -> Iterator[str]:
    """SIGKILL while clients wait: all are told at once, and the next server has the port."""
    with tempfile.TemporaryDirectory() as home:
        server = Server(forks, env={"D3_HOME": home})
        if not server.wait():
            yield f"does not start: {server.end().err[-300:]}"
            return
        server.visit(rng, rng.randint(1, 4))
        time.sleep(rng.uniform(0, 1.0))
        server.end(signal.SIGKILL)
        yield from filter(None, server.wrong)
        yield from broken_files(Path(home))
        yield from _answers_and_ends(Server(forks, env={"D3_HOME": home}, port=server.port))


def _answers_and_ends(server: Server, *, may_fail: bool = False) -> Iterator[str]:
    """A server answers a client that is in order, and ends in order."""
    if server.wait():
        server.visit_as(whole)
        server.leave()
    elif not may_fail:
        server.wrong.append("it does not start")
    ended = server.end()
    yield from problems(ended, may_fail=may_fail)
    for wrong in server.wrong:
        if wrong or not may_fail:
            yield wrong or "the server has left its client"


def serve_clients(forks: Forks, rng: random.Random) -> Iterator[str]:
    """Clients that vanish, stay or send half a request, by the dozen: others are answered."""
    options = ("--queue", str(rng.randint(2, 8)), "--sessions", str(rng.randint(0, 3)))
    with tempfile.TemporaryDirectory() as home:
        server = Server(forks, *options, "--timeout", "60", env={"D3_HOME": home})
        if server.wait():
            for _ in range(3):
                server.visit(rng, 6)
                server.visit_as(leaves)
                time.sleep(rng.uniform(0, 0.5))
            server.leave()
        yield from _answers_and_ends(server)


def serve_home(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A home that cannot be written, or a disk that is full: a server needs neither."""
    how = rng.choice(("/proc/d3", "/dev/null/d3", "full", "no file may grow"))
    if how == "full":
        with small_file_system(1 << 12) as disk:
            with suppress(OSError):
                (disk / "taken").write_bytes(bytes(1 << 12))
            server = Server(forks, env={"D3_HOME": str(disk), "TMPDIR": str(disk)} | MEASURED)
            found = list(_answers_and_ends(server))
    elif how == "no file may grow":
        with tempfile.TemporaryDirectory() as home:
            env = {"D3_HOME": home} | MEASURED
            found = list(_answers_and_ends(Server(forks, env=env, limits={"FSIZE": 0})))
    else:
        found = list(_answers_and_ends(Server(forks, env={"D3_HOME": how} | MEASURED)))
    yield from (f"{how}: {problem}" for problem in found)


def _visited(server: Server, rng: random.Random) -> Iterator[str]:
    """Lets clients visit a server that may lack memory; yields what is wrong with how it ends."""
    if server.wait():
        server.visit(rng, 4)
        server.leave()
    yield from _answers_and_ends(server, may_fail=True)


def serve_memory(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A limit on the address space: the server answers or says why not, also request by request."""
    most = rng.randint(1150, 2500) << 20
    with tempfile.TemporaryDirectory() as home:
        server = Server(forks, env={"D3_HOME": home}, limits={"AS": most})
        for problem in _visited(server, rng):
            yield f"{most >> 20} MB of addresses: {problem}"


def serve_group(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A container's memory limit, beyond which the kernel kills."""
    most = rng.randint(40, 600) << 20
    with tempfile.TemporaryDirectory() as home, memory_group(most) as group:
        server = Server(forks, env={"D3_HOME": home}, group=group)
        for problem in _visited(server, rng):
            yield f"a control group of {most >> 20} MB: {problem}"


def serve_hang_up(forks: Forks, rng: random.Random) -> Iterator[str]:
    """The terminal goes away while a server starts or answers."""
    after = rng.uniform(0, 5)
    with tempfile.TemporaryDirectory() as home:
        gone = {"terminal": True, "hang_up": True, "after": after}
        server = Server(forks, env={"D3_HOME": home}, **gone)
        if server.wait():
            server.visit(rng, 3)
        time.sleep(max(0.0, after))
        ended = server.end()
        for problem in (*problems(ended), *filter(None, server.wrong)):
            yield f"gone after {after:.3f} s: {problem}"
