"""Hostile clients: each is refused, and the server goes on as if it had not come.

Two servers run as processes of their own, one with a key and one for this machine alone. Every
attack goes to one of them. Afterwards it must write the same reply as before, in the memory that it
had, without a word in its log about what was sent, and without having opened anything.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from d3cli.model.model import LoadedModel
from tests.forks import ROOT
from tests.hostile.http import ATTACKS, MARK, PATIENCE, Answer, Attack, Target
from tests.serve.conftest import STORY, alone, user

KEY = "test-key-of-ours"
ORIGIN = "http://localhost:3000"
HANGS = 300
MOST_GROWTH = 2.0  # of resident memory at its peak, against that after a first reply
LONGEST_ERROR = 2000  # bytes
TOKENS = 4
MOST_DESCRIPTORS = 20  # an idle server has about 10


class Server:
    """One server that is attacked, and what can be seen of it from outside.

    Attributes:
        at: how clients reach it, and `before` bytes of resident memory after its first reply.
    """

    at: Target
    before: int

    def __init__(self, seen: Path, *options: str) -> None:
        command = ("-m", "tests.hostile.http.watched", str(seen), "serve", "--port", "0")
        seen.touch()
        self._seen = seen
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *command, "--dtype", "float32", *options],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "D3_KERNELS": "torch"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._listening = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(HANGS)

    def listen(self, key: str) -> None:
        """Waits until clients can come."""
        assert self._listening.wait(HANGS), self.said
        found = re.search(r"127\.0\.0\.1:(\d+)", " ".join(self.said))
        assert found, self.said
        self.at = Target(int(found[1]), key)

    def resident(self, which: str = "VmRSS") -> int:
        """Bytes of resident memory; "VmHWM": at its peak so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(rf"^{which}:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]

    def opened(self) -> list[str]:
        """What it opened since it listens, but for its own code and what the kernel tells."""
        lines = self._seen.read_text().splitlines()
        return [line for line in lines if not _is_own(line)]

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def good(self) -> str:
        """The reply to a good request."""
        head = {"model": "demo", "messages": user(STORY), "max_tokens": TOKENS}
        body = json.dumps(head).encode()
        line = (f"Content-Length: {len(body)}", "Content-Type: application/json")
        start = self.at.head("POST /v1/chat/completions HTTP/1.1", *line, host="localhost")
        answer = self.at.raw(start + b"\r\n" + body)
        assert answer.status == 200, answer
        text: str = json.loads(answer.body)["choices"][0]["message"]["content"]
        return text

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line)
            if "listening on" in line:
                self._listening.set()
        self._listening.set()  # it has ended


def _is_own(line: str) -> bool:
    event, _, rest = line.partition(" ")
    path = rest.removeprefix("(").strip("'\"")
    if event not in ("open", "os.listdir", "os.scandir"):
        return False
    own = ("/proc/", "/sys/", sys.prefix, sys.base_prefix, str(ROOT / "d3cli"), str(ROOT / "tests"))
    return path.startswith(own) and not re.search(r"'[wax]b?'", rest)


class Servers:
    """The servers that are attacked, by whether they have a key. Each starts when it is needed."""

    def __init__(self, folder: Path, expected: str) -> None:
        self.expected = expected
        self._folder, self._started = folder, dict[bool, Server]()

    def __getitem__(self, has_key: bool) -> Server:
        if has_key not in self._started:
            options = ("--api-key", KEY) if has_key else ("--allow-origin", ORIGIN)
            server = self._started[has_key] = Server(self._folder / str(has_key), *options)
            server.listen(KEY if has_key else "")
            assert server.good() == self.expected
            server.before = server.resident()
        return self._started[has_key]

    def values(self) -> list[Server]:
        return list(self._started.values())

    def close(self) -> None:
        for server in self.values():
            server.close()


@pytest.fixture(scope="module")
def servers(builtin: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    expected = alone(builtin, user(STORY), max_tokens=TOKENS)
    with closing(Servers(tmp_path_factory.mktemp("seen"), expected)) as started:
        yield started


def check(answer: Answer, name: str, attack: Attack) -> None:
    """Checks one answer to an attack."""
    assert answer.status in attack.statuses, (name, answer.status, answer.body[:300])
    for secret in (KEY.encode(), b"wrong-key", b"Traceback", b"internal"):
        assert secret not in answer.body, name
    if answer.status >= 400 and answer.body:
        assert len(answer.body) < LONGEST_ERROR, name
        error = json.loads(answer.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"] == error["message"].strip() != ""


def check_server(server: Server, expected: str) -> None:
    """Checks that a server is as it was before an attack."""
    assert server.good() == expected
    assert server.process.poll() is None
    log = "".join(server.said)
    for word in (KEY, MARK, "wrong-key", "Traceback", "internal", "Exception", "passwd", "evil"):
        assert word not in log, log[-2000:]
    assert server.resident("VmHWM") < MOST_GROWTH * server.before
    assert server.opened() == []


def run(server: Server, name: str) -> None:
    attack = ATTACKS[name]
    answers = attack.run(server.at)
    for answer in answers if isinstance(answers, list) else [answers]:
        check(answer, name, attack)


ONE_BY_ONE = [name for name, attack in ATTACKS.items() if not attack.waits]
KINDS = sorted({attack.kind for attack in ATTACKS.values()})


def test_there_are_enough_of_them() -> None:
    assert len(ATTACKS) >= 300


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_clients_change_nothing(kind: str, servers: Servers) -> None:
    """The quick ones of one kind, all to the server with a key."""
    server = servers[True]
    for name in ONE_BY_ONE:
        attack = ATTACKS[name]
        if attack.kind == kind and attack.key and not attack.is_slow:
            run(server, name)
    check_server(server, servers.expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_hostile_client_changes_nothing(name: str, servers: Servers) -> None:
    """Each of them, and what it leaves behind."""
    server = servers[ATTACKS[name].key]
    run(server, name)
    check_server(server, servers.expected)


def test_clients_that_wait_are_given_up(servers: Servers) -> None:
    """All at once: each takes as long as the server is patient."""
    names = [name for name, attack in ATTACKS.items() if attack.waits]
    assert all(ATTACKS[name].key for name in names)
    server = servers[True]
    with ThreadPoolExecutor(len(names)) as clients:
        for done in [clients.submit(run, server, name) for name in names]:
            done.result()
    check_server(server, servers.expected)


def test_good_clients_are_answered_while_others_attack(servers: Servers) -> None:
    server = servers[True]
    names = ["chunks of one byte each", "a header byte by byte", "300,000 unknown names"]
    with ThreadPoolExecutor(len(names)) as clients:
        attacks = [clients.submit(run, server, name) for name in names]
        replies = [server.good() for _ in range(3)]
        for done in attacks:
            done.result()
    assert set(replies) == {servers.expected}


def test_no_connection_is_left(servers: Servers) -> None:
    """Those of clients that are gone, and those that were half open."""
    with servers[True].at.connected():
        pass
    for server in servers.values():
        deadline = time.monotonic() + PATIENCE
        while server.descriptors > MOST_DESCRIPTORS and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.descriptors <= MOST_DESCRIPTORS
