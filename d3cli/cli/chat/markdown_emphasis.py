"""Emphasis in Markdown: which marks surround whole words, and which are characters of their own."""

import re
import unicodedata

from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter

# Scripts that are written without blanks between words, or that attach endings to a name.
_NO_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\uff00-\uffef\U00020000-\U0003ffff]"
)
_MARKS = "*_~"
_MOST_MARKS = 8  # marks of several kinds in a row; more are text
_MOST_TOKENS = 2000  # emphasis over more than this is text
_BEFORE = "([\"'“‘«„‹—–-¿¡"
_AFTER = ")]\"'”’»›.,;:!?…—–-"
_NOT_FIRST = ",;:)]}/|=>"  # what emphasis cannot begin with
_NOT_LAST = "([{<\\|=/^"  # what emphasis cannot end with
_PAIRS = {")": "(", "]": "[", "}": "{"}
_DUNDER = re.compile(r"__[A-Za-z0-9](?:\w{0,60}[A-Za-z0-9])?__(?!\w)")
_NUMBERS = re.compile(r"[\d\s.,+\-/=()^%]+")


def delimit(state: StateInline, silent: bool) -> bool:
    """Reads a run of ``*``, ``_`` or ``~~`` as the possible edge of emphasis, or as text."""
    start, source = state.pos, state.src
    mark = source[start]
    if silent or mark not in _MARKS:
        return False
    end = start
    while end < state.posMax and source[end] == mark:
        end += 1
    if dunder := _DUNDER.match(source, start, state.posMax):
        return take(state, dunder.end(), silent)
    opens, closes = _edges(source, start, end)
    if not (opens or closes) or (mark == "~" and end - start != 2):
        return take(state, end, silent)
    width = 2 if mark == "~" else 1
    for _ in range(start, end, width):
        state.push("text", "", 0).content = mark * width
        state.delimiters.append(
            Delimiter(
                marker=ord(mark),
                length=0 if mark == "~" else end - start,
                token=len(state.tokens) - 1,
                end=-1,
                open=opens,
                close=closes,
            )
        )
    state.pos = end
    return True


def _edges(source: str, start: int, end: int) -> tuple[bool, bool]:
    """Whether the marks from `start` to `end` can open emphasis, and whether they can close it."""
    wide = end - start > 1 and source[start] == "*"
    left, right = start - 1, end
    while left >= 0 and source[left] in _MARKS:
        left -= 1
        if start - left > _MOST_MARKS:
            return False, False
    while right < len(source) and source[right] in _MARKS:
        right += 1
        if right - end > _MOST_MARKS:
            return False, False
    # Marks of other kinds are on the same side of the edge as the text beyond them.
    before, after = source[left] if left >= 0 else "", source[right : right + 1]
    if before and before == after and before in "\"'":
        return False, False
    opens = _may_precede(source, left, wide) and _may_begin(source, right, wide)
    closes = _may_end(before) and _may_follow(source, right, wide)
    return opens, closes


def _may_precede(source: str, at: int, strong: bool) -> bool:
    """Whether emphasis may begin after the character at this index."""
    if at < 0:
        return True
    char, earlier = source[at], source[at - 1] if at else ""
    if char in "([":
        return not (is_word(earlier) or earlier in tuple(")]"))  # a call or an index
    if char == "/":
        return strong and (is_word(earlier) or earlier in tuple(_MARKS))
    if _NO_BLANKS.match(char):
        return strong or not char.isalnum()
    return char.isspace() or char in _BEFORE


def _may_begin(source: str, at: int, strong: bool) -> bool:
    """Whether the character at this index can be the first in emphasis."""
    char = source[at : at + 1]
    if not char or char.isspace() or char in _NOT_FIRST:
        return False
    if char == "\\":
        return strong or source[at + 1 : at + 2] in tuple("([")
    return strong or char != "."


def _may_end(char: str) -> bool:
    return bool(char) and not char.isspace() and char not in _NOT_LAST


def _may_follow(source: str, at: int, strong: bool) -> bool:
    char = source[at : at + 1]
    if not char or char.isspace() or char in _AFTER:
        return True
    if char == "/":
        later = source[at + 1 : at + 2]
        return strong and (is_word(later) or later in tuple(_MARKS))
    return bool(_NO_BLANKS.match(char)) and (strong or not char.isalnum())


def is_word(char: str) -> bool:
    """Whether a character belongs to a word or a name."""
    return bool(char) and (char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M")


def keep_unlikely_emphasis(state: StateInline) -> None:
    """Makes marks text again whose content is not a phrase: unbalanced brackets, or a number."""
    opened: list[int] = []
    tokens = state.tokens
    for index, token in enumerate(tokens):
        if token.tag not in ("em", "strong", "s"):
            continue
        if token.nesting == 1:
            opened.append(index)
            continue
        start = opened.pop()
        inner = tokens[start + 1 : min(index, start + _MOST_TOKENS)]
        content = "".join(one.content for one in inner)
        if (
            index - start > _MOST_TOKENS
            or not _is_balanced(content)
            or (token.tag == "em" and _NUMBERS.fullmatch(content))
        ):
            for edge in (tokens[start], token):
                edge.type, edge.tag, edge.nesting = "text", "", 0
                edge.content, edge.markup = edge.markup, ""


def _is_balanced(text: str) -> bool:
    opened: list[str] = []
    for char in text:
        if char in _PAIRS.values():
            opened.append(char)
        elif char in _PAIRS and (not opened or opened.pop() != _PAIRS[char]):
            return False
    return not opened and text.count('"') % 2 == 0


def take(state: StateInline, end: int, silent: bool) -> bool:
    """Takes the characters up to this index as text."""
    if not silent:
        state.append_pending(state.src[state.pos : end])
    return skip(state, end)


def skip(state: StateInline, end: int) -> bool:
    """Goes on at this index."""
    state.pos = end
    return True
