"""What stands beside a conversation's file: its lock, and a copy of it as it was when damaged.

Knows nothing of messages.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path

from d3cli.base.atomic_files import replace_file_by_parts
from d3cli.base.errors import TranscriptError, UsageError
from d3cli.base.file_lock import file_lock
from d3cli.decode.transcript import CONVERSATION, path_of, remove


@contextmanager
def in_use(id_: str) -> Iterator[None]:
    """Locks a conversation against other processes inside this context.

    Raises:
        UsageError: another d3 is using the conversation.
    """
    path = path_of(id_).with_name(f".{id_}.lock")
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(path, patience=0))
            held.callback(_remove, path)
        except TimeoutError:
            raise UsageError(
                f"the conversation {id_} is open in another d3 chat",
                "leave that chat first, or start a new one: d3 chat",
            ) from None
        except OSError:  # a file system without locks; saving reports the rest
            pass
        yield


def keep_damaged(path: Path) -> Path:
    """Copies a damaged conversation, byte by byte, before another one replaces it.

    Returns:
        The copy; an equal one that is there already is enough.

    Raises:
        TranscriptError: it cannot be copied.
    """
    data = CONVERSATION.read(path)
    try:
        copy = next(
            one for one in _copies(path) if not one.exists() or CONVERSATION.find(one) == data
        )
        if not copy.exists():
            replace_file_by_parts(copy, [data])
    except OSError as error:
        raise TranscriptError(
            f"{path} is damaged and cannot be copied: {error.strerror}",
            "check the disk and the permissions, or copy it elsewhere",
        ) from error
    return copy


def remove_damaged(path: Path) -> None:
    """Removes all copies that `keep_damaged` made of a conversation.

    Raises:
        TranscriptError: one cannot be removed.
    """
    for copy in takewhile(Path.exists, _copies(path)):
        remove(copy)


def _copies(path: Path) -> Iterator[Path]:
    """The names of copies: ``ID.jsonl.damaged``, ``ID.jsonl.damaged1`` and so on."""
    return (path.with_name(f"{path.name}.damaged{number or ''}") for number in count())


def _remove(path: Path) -> None:
    with suppress(OSError):  # Windows cannot remove an open file
        path.unlink(missing_ok=True)
