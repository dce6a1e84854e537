"""Saves a chat's conversation after each message, under an id that only this process uses."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from d3cli.base.errors import TranscriptError
from d3cli.decode import transcript
from d3cli.decode.transcript_files import in_use

if TYPE_CHECKING:
    from d3cli.decode.conversation import Conversation


class Saving:
    """Saves one conversation at a time. Call `close` at the end.

    Args:
        id_: the id to save under; None saves nothing.

    Attributes:
        id: the present id; None if nothing is saved.
        problem: why the last save failed; None if it worked.

    Raises:
        UsageError: the conversation is open in another process.
    """

    def __init__(self, id_: str | None) -> None:
        self.id: str | None = None
        self._held = ExitStack()  # the lock of the present id
        self.problem: TranscriptError | None = None
        if id_ is not None:
            self.save_as(id_)

    def save_as(self, id_: str) -> None:
        """Saves under this id from now on.

        Raises:
            UsageError: the conversation is open in another process.
        """
        self._held.close()
        self._held.enter_context(in_use(id_))
        self.id = id_

    def save(self, conversation: "Conversation") -> None:
        """Saves the conversation, or removes its file if there are no messages; sets `problem`."""
        if self.id is None:
            return
        path = transcript.path_of(self.id)
        try:
            if conversation.messages:
                transcript.write(path, conversation.record())
            else:
                transcript.remove(path)
            self.problem = None
        except TranscriptError as error:
            self.problem = error

    def close(self) -> None:
        """Releases the conversation for other processes."""
        self._held.close()
