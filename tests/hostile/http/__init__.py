"""Hostile clients of `d3 serve`. Each attacks one server, which a test has started itself."""

from tests.hostile.http import (  # noqa: F401 - each registers its attacks
    access,
    bodies,
    clients,
    fields,
    framing,
    headers,
    paths,
)
from tests.hostile.http.registry import ATTACKS, Attack
from tests.hostile.http.target import GONE, MARK, PATIENCE, Answer, Target

__all__ = ["ATTACKS", "GONE", "MARK", "PATIENCE", "Answer", "Attack", "Target"]
