"""Where a chat keeps its conversation: under one id, for this process alone, as it goes."""

from contextlib import ExitStack

from d3cli import transcript
from d3cli.cli.output import Output
from d3cli.conversation import Conversation
from d3cli.errors import TranscriptError


class Saving:
    """Saves a conversation; `close` it in the end.

    Args:
        id_: what to save it under; None saves nothing.

    Attributes:
        id: what it is saved under now.

    Raises:
        UsageError: another d3 has it.
    """

    def __init__(self, output: Output, id_: str | None) -> None:
        self.id: str | None = None
        self._output = output
        self._held = ExitStack()  # keeps other processes off it
        self._said = ""
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

    def save(self, conversation: Conversation) -> None:
        """Saves all that was said; says once why that fails, and lets the chat go on."""
        if self.id is None:
            return
        path = transcript.path_of(self.id)
        try:
            if conversation.messages:
                transcript.write(path, conversation.record())
            else:
                transcript.remove(path)
            self._said = ""
        except TranscriptError as error:
            if error.message != self._said:
                self._said = error.message
                self._output.error(error.message, error.hint)

    def close(self) -> None:
        """Lets other processes have it."""
        self._held.close()
