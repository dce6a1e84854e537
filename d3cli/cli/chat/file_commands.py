"""Commands about files: /save, /load, /attach, /export."""

import os
from contextlib import suppress
from pathlib import Path

from d3cli.base.errors import D3Error, UsageError
from d3cli.cli.chat.attachments import read_attachment
from d3cli.cli.chat.export import as_markdown, write_markdown
from d3cli.cli.chat.file_names import typed_path
from d3cli.cli.chat.saved import read_saved
from d3cli.cli.chat.session import Chat
from d3cli.cli.chat.settings import unquoted
from d3cli.cli.output_file import target_of
from d3cli.decode import transcript

FORCE = "--force"


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
    path = typed_path(argument)
    if not os.path.exists(path):  # noqa: PTH110 - no error for a name that is too long
        with suppress(UsageError):
            path = transcript.path_of(transcript.find(argument))
    messages, note = read_saved(path, will_replace=False)  # a copy goes on
    if note:
        chat.output.note(note)
    chat.take_over(messages)


def attach(chat: Chat, argument: str) -> None:
    """Puts a text file before the next message; "" removes the files; alone it lists them.

    Raises:
        UsageError: the file is no text, or does not fit the context.
    """
    files = chat.attachments.files
    if argument and not unquoted(argument):
        files.clear()
    elif argument:
        path = typed_path(argument)
        tokenizer = chat.conversation.model.tokenizer
        files[path] = read_attachment(path, tokenizer, chat.room_for(path))
    if not files:
        chat.screen.print("nothing is attached; /attach FILE puts a text before a message", "dim")
        return
    rows = [(one.name, f"{one.tokens:,} tokens") for one in files.values()]
    chat.screen.print_rows(rows)
    chat.screen.print('before your next message; /attach "" removes them', "dim")


def export(chat: Chat, argument: str) -> None:
    """Writes the conversation to a file as Markdown; --force replaces one that exists.

    Raises:
        UsageError: nothing was said, or there is such a file.
        TranscriptError: it cannot be written.
    """
    if not chat.conversation.messages:
        raise UsageError("there is nothing to export yet", "say something first")
    forced = argument.partition(" ")[0] == FORCE
    name = argument.removeprefix(FORCE).strip() if forced else argument
    if not unquoted(name):
        raise UsageError("/export needs a file", "for example: /export talk.md")
    path = typed_path(name)
    write_markdown(path, as_markdown(chat.conversation.record()), replace=forced)
    chat.screen.print(f"exported: {path}", "dim")


def _save_here(chat: Chat) -> Path:
    id_ = chat.saving.id or transcript.new_id()
    if chat.saving.id is None:
        chat.saving.save_as(id_)
    chat.saving.save(chat.conversation)
    if chat.saving.problem is not None:
        raise chat.saving.problem
    return transcript.path_of(id_)


def _save_copy(chat: Chat, argument: str) -> Path:
    path = typed_path(argument)
    target, is_there = target_of(path)
    if is_there:
        try:
            transcript.read(target)
        except D3Error:
            raise UsageError(
                f"{path} exists and is not a conversation", "give another name"
            ) from None
    transcript.write(target, chat.conversation.record())
    return path
