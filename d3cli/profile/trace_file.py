"""Traces as JSON: reads schemas 1 to 3, writes schema 3. No torch.

docs/trace.md describes the format.
"""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from d3cli.base.bounded_files import FileKind
from d3cli.base.errors import TraceError
from d3cli.base.json_rows import decode_json
from d3cli.profile.trace import SCHEMA, ReplyTrace, TokenTrace, Trace, schedule_from
from d3cli.profile.trace_fields import Count, require
from d3cli.profile.trace_model import ModelTrace

_TRACE = FileKind(
    what="trace",
    largest=512 << 20,
    error=TraceError,
    hint="give a file that d3 profile -o json wrote",
    missing_hint="check the path",
    expand_home=True,
    pipes=True,
)


def read_trace(path: Path) -> Trace:
    """Reads a trace that `d3 profile` wrote; ``-`` reads stdin.

    Raises:
        TraceError: it cannot be read, is damaged, or was written by a newer d3.
    """
    if path != Path("-"):
        return parse_trace(_TRACE.read(path), str(path))
    try:
        return parse_trace(_TRACE.read_stream(sys.stdin.buffer, "stdin"), "stdin")
    except (OSError, AttributeError) as error:  # AttributeError: the shell has closed it
        reason = getattr(error, "strerror", None) or "it is closed"
        raise TraceError(f"stdin cannot be read: {reason}", "give the path of a file") from error


def parse_trace(data: bytes, name: str) -> Trace:
    """Reads a trace from JSON. Unknown fields are ignored.

    Args:
        name: what to call the file in an error.

    Raises:
        TraceError: it is damaged, or was written by a newer d3.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")  # editors on Windows put it there
    try:
        schema = decode_json(data, _Head).schema
        if schema > SCHEMA:
            raise TraceError(
                f"{name} was written by a newer d3 (schema {schema}, this one reads {SCHEMA})",
                "update d3, or draw it with the d3 that wrote it",
            )
        trace = decode_json(_upgraded(data) if schema == 1 else data, Trace)
        # Schema 3 added fields to schema 2.
        return trace if trace.schema == SCHEMA else replace(trace, schema=SCHEMA)
    except ValueError as error:
        raise TraceError(f"{name} is not a valid trace: {error}", _TRACE.hint) from error


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
        return weights.read_by_dropped(schedule.units)


def _raw(kind: Any, **lists: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A struct with the fields of `kind` as they stand in the text; others are passed over.

    So a file cannot have unknown fields built that take many times its size.

    Args:
        lists: the fields that are lists of such structs.
    """
    typed: list[tuple[str, Any, Any]] = []
    for name in (field.name for field in fields(kind)):
        held: Any = GenericAlias(list, (lists[name],)) if name in lists else msgspec.Raw
        typed.append((name, held | UnsetType, UNSET))
    return msgspec.defstruct(f"_Raw{kind.__name__}", typed)


_RawTrace = _raw(Trace, replies=_raw(ReplyTrace, tokens=_raw(TokenTrace)))


def _upgraded(data: bytes) -> bytes:
    """A trace of schema 1 with the fields of later ones.

    Schema 1 has no `bytes_read`: there, every token dropped a prefix of the skip order.
    """
    typed = decode_json(data, _Trace1)
    found: Any = decode_json(data, _RawTrace)
    by_dropped = typed.bytes_read()
    for reply, typed_reply in zip(found.replies, typed.replies, strict=True):
        for token, typed_token in zip(reply.tokens, typed_reply.tokens, strict=True):
            count = typed_token.dropped_units
            require(
                count < len(by_dropped), f"a token drops {count} of {len(by_dropped) - 1} units"
            )
            token.bytes_read = msgspec.Raw(b"%d" % by_dropped[count])
    found.schema = msgspec.Raw(b"%d" % SCHEMA)
    return msgspec.json.encode(found)
