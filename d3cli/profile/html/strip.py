"""The strip of a lossless reply: its text token by token, marked by what drafted each."""

from collections.abc import Sequence
from dataclasses import dataclass

from d3cli.base.inert import inert
from d3cli.profile.trace import ReplyTrace

# The kinds of tokens, and what the legend calls them.
KINDS = {
    "lookup": "drafted by lookup",
    "depth": "drafted by D³",
    "model": "drafted by the draft model",
    "full": "full depth's own",
}
EMPTY = "▫"  # half a character, or most end tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of the strip.

    Attributes:
        kind: one of `KINDS`.
        text: inert.
        title: what its tooltip says.
        rejected: the text that was thrown away here, inert; None if there is none.
    """

    kind: str
    text: str
    title: str
    rejected: str | None


def strip(reply: ReplyTrace, titles: Sequence[str]) -> list[Piece]:
    """The pieces of a lossless reply; none of a plain one.

    Args:
        titles: the tooltip of each token.
    """
    if reply.lossless is None:
        return []
    return [
        Piece(
            kind=token.drafted_by or "full",
            text=_shown(token.text),
            title=title,
            rejected=None if token.rejected_text is None else _shown(token.rejected_text),
        )
        for token, title in zip(reply.tokens, titles, strict=True)
    ]


def kinds_of(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """The kinds that occur, with their names."""
    found = {piece.kind for piece in pieces}
    return [(kind, name) for kind, name in KINDS.items() if kind in found]


def _shown(text: str) -> str:
    """A text with marks where lines end, since a line break alone has no width to be marked."""
    return inert(text).replace("\n", "↵\n") or EMPTY
