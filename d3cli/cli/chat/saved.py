"""The saved conversations: ``d3 chat --list`` and ``--delete``, and one that goes on."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from d3cli.base.errors import UsageError
from d3cli.base.inert import quoted
from d3cli.cli.output import Output
from d3cli.decode import transcript
from d3cli.decode.transcript import ChatMessage, Summary
from d3cli.decode.transcript_files import in_use, keep_damaged, remove_damaged

SCHEMA = 1
TITLE = 60  # characters of a title in a table


def list_saved(output: Output, *, as_json: bool) -> int:
    """Lists the conversations, the latest first; returns the exit code."""
    found = transcript.all_conversations()
    if as_json:
        output.json({"schema": SCHEMA, "conversations": [_as_json(one) for one in found]})
    elif found:
        header = ("id", "changed", "messages", "model", "first message")
        output.table(header, [_row(one) for one in found])
    else:
        output.note("no conversations yet; d3 chat starts one")
    return 0


def read_saved(path: Path, *, will_replace: bool) -> tuple[list[ChatMessage], str]:
    """The whole messages of a saved conversation, and a note if the last line's end is missing.

    Args:
        will_replace: the file will be written, so a damaged one is copied first.

    Raises:
        TranscriptError: it cannot be read, is damaged elsewhere, or cannot be copied.
    """
    messages, torn = transcript.read_whole_lines(path)
    if not torn:
        return messages, ""
    note = f"the last line of the conversation {path} is incomplete and was left out"
    kept = f"; a copy of the file as it was is {keep_damaged(path)}" if will_replace else ""
    return messages, note + kept


def delete(output: Output, given: str, *, ask: bool) -> int:
    """Deletes one conversation; returns the exit code.

    Args:
        given: its id, or the beginning of it.
        ask: ask at the terminal first.

    Raises:
        UsageError: there is no such conversation, it is open in a chat, or nobody can be asked.
        TranscriptError: it cannot be removed.
    """
    id_ = transcript.find(given)
    with in_use(id_):
        if ask and not _confirmed(output, id_):
            output.note("nothing was deleted")
            return 1
        path = transcript.path_of(id_)
        transcript.remove(path)
        remove_damaged(path)
    output.note(f"deleted: {id_}")
    return 0


def _confirmed(output: Output, id_: str) -> bool:
    """Whether the user wants to delete a conversation."""
    if sys.stdin is None or not (sys.stdin.isatty() and output.is_terminal):
        raise UsageError(
            "--delete asks at a terminal, and there is none", "--yes deletes without asking"
        )
    one = next(one for one in transcript.all_conversations() if one.id == id_)
    about = one.problem or f"{len(one.messages)} messages, {quoted(one.title[:TITLE])}"
    output.note(f"delete {one.id} ({about})? Type y to delete it.")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _row(one: Summary) -> tuple[str, ...]:
    return (
        one.id,
        f"{datetime.fromtimestamp(one.changed):%Y-%m-%d %H:%M}",
        "" if one.problem else str(len(one.messages)),
        one.model or "",
        one.problem or one.title[:TITLE],
    )


def _as_json(one: Summary) -> dict[str, object]:
    return {
        "id": one.id,
        "changed": datetime.fromtimestamp(one.changed, UTC).isoformat(timespec="seconds"),
        "messages": len(one.messages),
        "turns": sum(message.role == "user" for message in one.messages),
        "model": one.model,
        "title": one.title,
        "problem": one.problem or None,
    }
