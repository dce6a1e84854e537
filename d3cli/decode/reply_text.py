"""The text of a reply as its tokens come, cut before a stop string. Knows nothing of models."""

from collections.abc import Callable, Iterable, Sequence

from d3cli.text.stop_strings import StopStrings, without_marks
from d3cli.text.tokens import Detokenizer


class ReplyText:
    """The text so far.

    Args:
        new_detokenizer: makes a detokenizer that stands before the first token.
        stops: the stop strings, with and without marks.

    Attributes:
        pieces: the text that each token completed, before stop strings cut it.
        text: what may be shown.

    Raises:
        UsageError: a stop string is empty.
    """

    def __init__(self, new_detokenizer: Callable[[], Detokenizer], stops: Sequence[str]) -> None:
        self._new_detokenizer, self._stops = new_detokenizer, stops
        self.pieces: list[str] = []
        self.text = ""
        self._begin()

    def _begin(self) -> None:
        self._detokenizer, self._cut = self._new_detokenizer(), StopStrings(self._stops)

    def add(self, token_id: int) -> str:
        """Adds a token to `pieces`; returns its text with marks, for `show`."""
        piece = self._detokenizer.push(token_id)
        self.pieces.append(without_marks(piece))
        return piece

    def show(self, piece: str) -> tuple[str, bool]:
        """Adds to `text` what may be shown now; returns it, and whether a stop string was found.

        Part of a character, or of what may become a stop string, is held back.
        """
        shown, stopped = self._cut.push(piece)
        self.text += shown
        return shown, stopped

    def release(self) -> str:
        """Adds the text that is still held back, and returns it."""
        rest = self._detokenizer.flush()
        if self.pieces:
            self.pieces[-1] += rest
        return self._show_to_end(rest)

    def rebuild(self, token_ids: Iterable[int]) -> str:
        """Makes everything from the tokens again, nothing held back; returns what `text` gained.

        A signal handler may have raised while a token was being added, after its piece was made
        but before its text was. Part of a character is dropped.
        """
        before = self.text
        self._begin()
        pieces = [self._detokenizer.push(token_id) for token_id in token_ids]
        if pieces:
            pieces[-1] += self._detokenizer.flush().removesuffix("\ufffd")
        self.pieces = [without_marks(piece) for piece in pieces]
        self.text = ""
        self._show_to_end("".join(pieces))
        return self.text[len(before) :]

    def _show_to_end(self, piece: str) -> str:
        shown, stopped = self.show(piece)
        if not stopped:
            rest = self._cut.flush()
            self.text += rest
            shown += rest
        return shown
