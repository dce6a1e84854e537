"""Where a chat keeps its conversation: under one id, for this process alone, as it goes."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from d3cli.base.errors import TranscriptError
from d3cli.decode import transcript

if TYPE_CHECKING:
    from d3cli.decode.conversation import Conversation


class Saving:
    """Saves a conversation; `close` it in the end.

    Args:
        id_: what to save it under; None saves nothing.

    Attributes:
        id: what it is saved under now.
        problem: why the last save failed; None where it did not.

    Raises:
        UsageError: another d3 has it.
    """

    def __init__(self, id_: str | None) -> None:
        self.id: str | None = None
        self._held = ExitStack()  # keeps other processes off it
        self.problem: TranscriptError | None = None
        if id_ is not None:
            self.save_as(id_)

    def save_as(self, id_: str) -> None:
        """Saves under this id from now on.

        Raises:
            UsageError: another d3 has it.
        """
        self._held.close()
        self._held.enter_context(transcript.in_use(id_))
        self.id = id_

    def save(self, conversation: "Conversation") -> None:
        """Saves all that was said, where it is to be saved; `problem` says if that failed."""
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
        """Lets other processes have it."""
        self._held.close()
