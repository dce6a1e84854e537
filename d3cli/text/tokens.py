"""Between text and token ids: raw prompts in, whole characters out, stop strings.

Knows a tokenizer; knows nothing of models, depth or terminals.
"""

from collections.abc import Iterator
from typing import Any

from d3cli.base.errors import ContextFullError, PromptError

# A tokenizer takes 160 times a text's size while it works. More bytes than this at once are only
# given to it where they may fit a context: 3 to 5 make a token of prose.
LONGEST_PIECE = 1 << 20
MOST_BYTES_A_TOKEN = 16


def encode_raw(tokenizer: Any, text: str, context: int | None = None) -> list[int]:
    """Text as it is, with control tokens parsed and the model's own BOS in front, once.

    Raises:
        PromptError: the text is empty.
        ContextFullError: it is more than twice as long as the `context`.
    """
    if not text:
        raise PromptError("the prompt is empty", "give it some text")
    if context is not None:
        check_length(tokenizer, text, context)
    ids = list(tokenizer(text)["input_ids"])
    doubled = len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
    return ids[1:] if doubled else ids


def check_length(tokenizer: Any, text: str, context: int) -> None:
    """Refuses a text that is far beyond a context, after tokenizing only its beginning.

    Raises:
        ContextFullError: it has more than twice as many tokens.
    """
    beginning = _first_bytes(text, max(LONGEST_PIECE, MOST_BYTES_A_TOKEN * context))
    if len(beginning) == len(text):
        return
    tokens = len(tokenizer(beginning, add_special_tokens=False, verbose=False)["input_ids"])
    if tokens > 2 * context:  # no merging across the cut makes that fit
        raise ContextFullError(tokens, context, at_least=True)


def encode_in_pieces(tokenizer: Any, text: str) -> Iterator[int]:
    """The tokens of a text of any length: no control tokens around it, and none made of its words.

    Beyond a million bytes it is tokenized by pieces, cut after a line where there is one,
    else after a word.
    """
    at = 0
    while at < len(text):
        piece = _first_bytes(text[at : at + LONGEST_PIECE], LONGEST_PIECE)
        if at + len(piece) < len(text):
            cut = piece.rfind("\n") + 1 or max(piece.rfind(" "), 0)
            piece = piece[: cut or None]
        # Not verbose: what does not fit the context is cut by the caller.
        encoded = tokenizer(
            piece, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        yield from encoded["input_ids"]
        at += len(piece)


def _first_bytes(text: str, most: int) -> str:
    """What of a text's beginning has at most so many bytes as UTF-8."""
    if 4 * len(text) <= most:
        return text
    return text[:most].encode()[:most].decode(errors="ignore")


class Detokenizer:
    """Token ids in, one by one; text out, never a part of a character.

    Each step decodes the ids since the last piece, with the piece's own ids in front as context:
    tokenizers strip or add spaces at the beginning of a text. (`tokenizers.DecodeStream` does the
    same, but raises where a byte-fallback tokenizer meets broken UTF-8.)
    """

    # A character has at most 4 bytes; ids that have not become one by now never will.
    LONGEST_WAIT = 16

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # ids of the last piece
        self._waiting: list[int] = []  # ids since then

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is still open."""
        self._waiting.append(token_id)
        piece = self._new_text()
        if not piece or (piece.endswith("\ufffd") and len(self._waiting) < self.LONGEST_WAIT):
            return ""
        self._context, self._waiting = self._waiting, []
        return piece

    def flush(self) -> str:
        """What was held back at the end: an unfinished character, as U+FFFD."""
        piece = self._new_text()
        self._context, self._waiting = self._waiting, []
        return piece

    def _new_text(self) -> str:
        known = self._decode(self._context)
        return self._decode([*self._context, *self._waiting])[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
