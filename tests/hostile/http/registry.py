"""Collects attacks on a server by name."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.hostile.http.target import Answer, Target

Run = Callable[[Target], Answer | list[Answer]]


@dataclass(frozen=True, slots=True)
class Attack:
    """One hostile client.

    Attributes:
        run: attacks a server; returns what came back, one answer or several.
        statuses: which answers are right; GONE: a closed connection.
        waits: whether it takes as long as the server is patient, and nothing else.
        is_slow: whether it takes long otherwise.
        key: whether it is for a server with a key, or for one without.
    """

    run: Run
    statuses: frozenset[int]
    waits: bool = False
    is_slow: bool = False
    key: bool = True

    @property
    def kind(self) -> str:
        """The module that it is in."""
        return getattr(self.run, "func", self.run).__module__.rpartition(".")[2]


ATTACKS: dict[str, Attack] = {}


def add(name: str, run: Run, *statuses: int, **more: bool) -> None:
    """Adds an attack that is a single expression."""
    assert name not in ATTACKS, name
    ATTACKS[name] = Attack(run, frozenset(statuses), **more)


def attack(*statuses: int, **more: bool) -> Callable[[Run], Run]:
    """Adds an attack that is a function, under its name."""

    def added(run: Run) -> Run:
        add(run.__name__.replace("_", " "), run, *statuses, **more)
        return run

    return added
