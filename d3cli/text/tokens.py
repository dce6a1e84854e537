"""Between text and token ids: raw prompts in, whole characters out.

Knows a tokenizer. Knows nothing of models, depth or terminals.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from d3cli.base.errors import ContextFullError, PromptError

# Bytes that a tokenizer gets at once; it needs 160 times as much memory while it works. It gets
# more only if that may fit the context.
LONGEST_PIECE = 1 << 20
MOST_BYTES_A_TOKEN = 16  # a token of prose has 3 to 5


def encode_raw(tokenizer: Any, text: str, context: int | None = None) -> list[int]:
    """The ids of a text, with control tokens parsed and the model's BOS, if any, in front.

    Nothing is added after the text.

    Raises:
        PromptError: the text is empty.
        ContextFullError: it has more than twice as many tokens as the `context`.
    """
    if not text:
        raise PromptError("the prompt is empty", "give it some text")
    if context is not None:
        check_length(tokenizer, text, context)
    ids = encode_beginning(tokenizer, text)
    doubled = len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
    return ids[1:] if doubled else ids


def encode_beginning(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """The ids of a text that a reply goes on from: what the tokenizer adds after it is left out.

    Some tokenizers add an EOS or a separator after each text. A model that reads one takes the text
    for finished.
    """
    encoded = tokenizer(text, return_special_tokens_mask=True, **options)
    ids, added = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    while added and added[-1] and 0 in added:
        added.pop()
    return ids[: len(added)]


def check_length(tokenizer: Any, text: str, context: int) -> None:
    """Refuses a text that is far too long for a context; tokenizes only its beginning.

    Raises:
        ContextFullError: it has more than twice as many tokens.
    """
    beginning = _first_bytes(text, max(LONGEST_PIECE, MOST_BYTES_A_TOKEN * context))
    if len(beginning) == len(text):
        return
    tokens = len(tokenizer(beginning, add_special_tokens=False, verbose=False)["input_ids"])
    if tokens > 2 * context:  # merges across the cut cannot halve that
        raise ContextFullError(tokens, context, at_least=True)


def encode_in_pieces(tokenizer: Any, text: str) -> Iterator[int]:
    """The tokens of a text of any length. None of them is a control token.

    A text of more than a million bytes is tokenized in pieces. They are cut after a line if there
    is one, else after a word.
    """
    at = 0
    while at < len(text):
        piece = _first_bytes(text[at : at + LONGEST_PIECE], LONGEST_PIECE)
        if at + len(piece) < len(text):
            cut = piece.rfind("\n") + 1 or max(piece.rfind(" "), 0)
            piece = piece[: cut or None]
        # Not verbose: the caller cuts what does not fit the context.
        encoded = tokenizer(
            piece, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        yield from encoded["input_ids"]
        at += len(piece)


def _first_bytes(text: str, most: int) -> str:
    """The longest beginning of a text that has at most `most` bytes as UTF-8."""
    if 4 * len(text) <= most:
        return text
    return text[:most].encode()[:most].decode(errors="ignore")


class Detokenizer:
    """Takes token ids one by one and returns text, never a part of a character.

    Each step decodes the ids since the last piece of text, with that piece's ids in front of them,
    because tokenizers strip or add spaces at the beginning of a text. (`tokenizers.DecodeStream`
    does the same, but raises if a byte-fallback tokenizer produces broken UTF-8.)

    Args:
        after: ids of a text that this one continues, such as a raw prompt. Without it, the text is
            decoded as a beginning.
        written: texts of special tokens that are not left out. They are returned as they are.
    """

    # Ids to hold back. A character has at most 4 bytes, so longer ones never become valid.
    LONGEST_WAIT = 16
    # Ids of `after` that are looked at.
    LONGEST_CONTEXT = 32

    def __init__(
        self,
        tokenizer: Any,
        after: Sequence[int] = (),
        written: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self._tokenizer, self._written = tokenizer, written
        self._context = self._end_of(after)  # ids of the last piece of text
        self._waiting: list[int] = []  # ids since then

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        if token_id in self._written:
            return self.flush() + self._written[token_id]
        self._waiting.append(token_id)
        piece = self._new_text()
        if not piece or (piece.endswith("\ufffd") and len(self._waiting) < self.LONGEST_WAIT):
            return ""
        self._context, self._waiting = self._waiting, []
        return piece

    def peek(self, *token_ids: int) -> str:
        """The text that these tokens would complete if they came next; does not take them.

        An incomplete character becomes U+FFFD.
        """
        ahead = Detokenizer(self._tokenizer, written=self._written)
        ahead._context, ahead._waiting = self._context, list(self._waiting)
        return "".join(map(ahead.push, token_ids)) + ahead.flush()

    def flush(self) -> str:
        """The rest at the end of the ids: an incomplete character becomes U+FFFD."""
        piece = self._new_text()
        self._context, self._waiting = self._waiting or self._context, []
        return piece

    def _end_of(self, ids: Sequence[int]) -> list[int]:
        """The last ids with visible text that begins with a whole character."""
        longest = min(len(ids), self.LONGEST_CONTEXT)
        for length in range(1, longest):
            text = self._decode(list(ids[-length:]))
            if text.strip() and "\ufffd" not in text:
                return list(ids[-length:])
        return list(ids[len(ids) - longest :])

    def _new_text(self) -> str:
        known = self._decode(self._context)
        return self._decode([*self._context, *self._waiting])[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
