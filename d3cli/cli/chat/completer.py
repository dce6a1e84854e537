"""Completes what the user types at the prompt: commands, their arguments and file names."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

# Returns the words that may follow a command, or None if a file name may.
Arguments = Callable[[], Sequence[str] | None]


class CommandCompleter(Completer):
    """Completes commands and their arguments, but not messages."""

    def __init__(self, commands: dict[str, Arguments]) -> None:
        self._commands = commands
        self._files = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yields the completions at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text.partition(" ")
        if not space:
            yield from _matching(self._commands, name)
            return
        arguments = self._commands.get(name)
        words = () if arguments is None else arguments()
        if words is None:
            yield from self._files.get_completions(Document(rest, len(rest)), complete_event)
            return
        yield from _matching(words, rest)


def _matching(words: Iterable[str], begun: str) -> Iterator[Completion]:
    for word in words:
        if word.startswith(begun):
            yield Completion(word, start_position=-len(begun))
