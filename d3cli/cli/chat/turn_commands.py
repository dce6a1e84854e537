"""Commands about turns and files: /undo, /clear, /save, /load."""

import shlex
from contextlib import suppress
from pathlib import Path

from d3cli.base.errors import D3Error, UsageError
from d3cli.cli.chat.session import Chat, as_typed
from d3cli.decode import transcript


def undo(chat: Chat, _: str) -> None:
    """Takes back the last turn; its message becomes the draft.

    Raises:
        UsageError: the user has said nothing.
    """
    text = chat.conversation.take_back()
    if text is None:
        raise UsageError("there is nothing to take back", "say something first")
    chat.save()
    chat.draft = as_typed(text)
    chat.screen.print("the last turn is taken back; your message is at the prompt", "dim")


def clear(chat: Chat, _: str) -> None:
    """Begins a new conversation."""
    chat.start_new()
    chat.screen.print("a new conversation", "dim")


def save(chat: Chat, argument: str) -> None:
    """Saves the conversation where it belongs, or a copy in a file.

    Raises:
        UsageError: nothing was said, or the file holds something else.
        TranscriptError: it cannot be written.
    """
    if not chat.conversation.messages:
        raise UsageError("there is nothing to save yet", "say something first")
    path = _save_copy(chat, argument) if argument else _save_here(chat)
    chat.screen.print(f"saved: {path}", "dim")


def load(chat: Chat, argument: str) -> None:
    """Goes on with a saved conversation, given by its file or its id.

    Raises:
        UsageError, TranscriptError: there is no such conversation, or it cannot be read.
    """
    if not argument:
        raise UsageError(
            "/load needs a file", "or the id of a conversation; d3 chat --list lists them"
        )
    path = _path(argument)
    if not path.exists():
        with suppress(UsageError):
            path = transcript.path_of(transcript.find(argument))
    chat.take_over(transcript.read(path))


def _save_here(chat: Chat) -> Path:
    id_ = chat.saving.id or transcript.new_id()
    if chat.saving.id is None:
        chat.saving.save_as(id_)
    chat.saving.save(chat.conversation)
    if chat.saving.problem is not None:
        raise chat.saving.problem
    return transcript.path_of(id_)


def _save_copy(chat: Chat, argument: str) -> Path:
    path = _path(argument)
    if path.exists():
        try:
            transcript.read(path)
        except D3Error:
            raise UsageError(
                f"{path} exists and is not a conversation", "give another name"
            ) from None
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent}", "create it first")
    transcript.write(path, chat.conversation.record())
    return path


def _path(argument: str) -> Path:
    """A file name, which may be quoted."""
    try:
        words = shlex.split(argument)
        name = words[0] if len(words) == 1 else argument
        return Path(name).expanduser()
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{argument} is not a file name: {error}", "check the quotes") from error
