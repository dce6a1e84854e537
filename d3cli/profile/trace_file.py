"""Traces as JSON: reads schemas 1 and 2, writes schema 2. No torch.

docs/trace.md describes the format.
"""

import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from d3cli.base.errors import TraceError
from d3cli.profile.trace import SCHEMA, ModelTrace, Trace, schedule_from
from d3cli.profile.trace_fields import Count, require

LARGEST_FILE = 512 << 20
CHECK_FILE = "give a file that d3 profile -o json wrote"


def read_trace(path: Path) -> Trace:
    """Reads a trace that `d3 profile` wrote; ``-`` reads stdin.

    Raises:
        TraceError: it cannot be read, is damaged, or was written by a newer d3.
    """
    try:
        with sys.stdin.buffer if path == Path("-") else path.expanduser().open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        # No such home, a NUL in the name, a stdin that the shell has closed.
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"the trace {path} cannot be read: {reason}", "check the path") from error
    if len(data) > LARGEST_FILE:
        raise TraceError(f"{path} is larger than 512 MiB, so it is no trace", CHECK_FILE)
    return parse_trace(data, str(path))


def parse_trace(data: bytes, name: str) -> Trace:
    """Reads a trace from JSON. Unknown fields are ignored.

    Args:
        name: what to call the file in an error.

    Raises:
        TraceError: it is damaged, or was written by a newer d3.
    """
    try:
        data = data.removeprefix(b"\xef\xbb\xbf")  # editors on Windows put it there
        schema = msgspec.json.decode(data, type=_Head).schema
        if schema > SCHEMA:
            raise TraceError(
                f"{name} was written by a newer d3 (schema {schema}, this one reads {SCHEMA})",
                "update d3, or draw it with the d3 that wrote it",
            )
        if schema == 1:
            return msgspec.convert(_upgraded(data), Trace)
        return msgspec.json.decode(data, type=Trace)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        words = str(error) or type(error).__name__
        raise TraceError(f"{name} is not a valid trace: {words}", CHECK_FILE) from error


def to_json(trace: Trace) -> dict[str, Any]:
    """The trace as a plain object; `parse_trace` reads it back."""
    found: dict[str, Any] = msgspec.to_builtins(trace)
    return found


@dataclass(frozen=True, slots=True)
class _Head:
    """The field that every schema has."""

    schema: Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class _Token1:
    dropped_units: Count


@dataclass(frozen=True, slots=True)
class _Reply1:
    tokens: list[_Token1]


@dataclass(frozen=True, slots=True)
class _Trace1:
    """The fields of schema 1 that tell how many bytes each token read."""

    model: ModelTrace
    schedule: dict[str, Any]
    replies: list[_Reply1]

    def bytes_read(self) -> list[int]:
        """Bytes of one step by the number of units dropped, ``0 .. len(skip_order)``."""
        weights, schedule = self.model.weight_bytes, schedule_from(self.schedule)
        fits = len(weights.layers) == schedule.num_layers
        require(fits, "layer_bytes does not have one entry for each layer")
        saved = accumulate(map(weights.of, schedule.skip_order), initial=0)
        return [weights.total - one for one in saved]


def _upgraded(data: bytes) -> dict[str, Any]:
    """A trace of schema 1 as an object of schema 2.

    Schema 1 has no `bytes_read`: there, every token dropped a prefix of the skip order.
    """
    typed = msgspec.json.decode(data, type=_Trace1)
    found: dict[str, Any] = msgspec.json.decode(data)
    by_dropped = typed.bytes_read()
    for reply, typed_reply in zip(found["replies"], typed.replies, strict=True):
        for token, typed_token in zip(reply["tokens"], typed_reply.tokens, strict=True):
            count = typed_token.dropped_units
            require(
                count < len(by_dropped), f"a token drops {count} of {len(by_dropped) - 1} units"
            )
            token["bytes_read"] = by_dropped[count]
    return found | {"schema": SCHEMA}
