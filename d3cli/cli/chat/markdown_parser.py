r"""Parses Markdown as models write it, so that no character with a meaning is taken for markup.

Models put arithmetic, identifiers, regexes, paths and LaTeX into their prose. CommonMark reads
``\(``, ``)*b*(``, ``&lt;`` or ``* * * * *`` as markup and drops characters. Here, the same rules
are stricter. What they no longer match stays text:

- A backslash is always text, and so is the punctuation after it. So are entities, HTML, reference
  definitions, pictures, and LaTeX between ``$``, ``\(`` or ``\[``.
- Emphasis surrounds whole words. The character before it is a blank, an opening bracket, a quote
  or a dash; the one after it is a blank or closing punctuation. Brackets inside are balanced.
  Dunder names stay text. In scripts without blanks, ``**`` may touch letters.
- A link has an address. ``>`` before a digit, ``=`` or ``>>`` is no quote. A line of ``-`` is a
  rule, and makes no heading of the line before it.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.common.utils import unescapeAll
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock, blockquote, hr, list_block
from markdown_it.rules_inline import StateInline, autolink, image, link
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token

DEEPEST = 40  # levels of nesting; the parser silently drops what is nested more deeply

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
_MATH = re.compile(
    r"\\\(.{0,1000}?\\\)|\\\[.{0,1000}?\\\]|\$\$.{1,1000}?\$\$"
    r"|(?<![\w$])\$(?![\s$])[^$\n]{0,400}?(?<!\s)\$(?!\d)",
    re.DOTALL,
)
_DISPLAY = {"$$": "$$", "\\[": "\\]", "\\begin{": "\\end{"}
_ADDRESS = re.compile(r"(?:[A-Za-z][\w+.-]*:|/|#|\.\.?/|[\w-]+(?:[./][\w-]+)+|[\w-]+/)[^\s<>\\]*")
_AUTOLINK = re.compile(r"<(?:https?:|ftp:|mailto:|[^<>\s:]+@)", re.IGNORECASE)
_NO_QUOTE = re.compile(r">(?:>>|[ \t]*[\d=])")
_NO_LIST = re.compile(r"[*+-][ \t]+[*+-](?:[ \t]|$)")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.{1,500}?)(?<!`)\1(?!`)")


class _Parser(MarkdownIt):
    def normalizeLink(self, url: str) -> str:  # noqa: N802
        return url

    def normalizeLinkText(self, link: str) -> str:  # noqa: N802
        return link


def parse(source: str) -> list[Token]:
    """The tokens of an inert Markdown text."""
    return _PARSER.parse(source)


def split_blocks(source: str, *, complete: bool = True) -> list[str]:
    """Cuts an inert Markdown text where its blocks begin; all but the last are finished.

    Args:
        complete: whether the text is at its end. If not, its last line may still turn into
            anything, so no block ends because of it.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+", source)  # the only line end that Markdown knows
    known = source if complete else source[: source.rfind("\n") + 1]
    starts = [token.map[0] for token in parse(known) if token.level == 0 and token.map]
    ends = [*starts[1:], len(lines)]
    return ["".join(lines[start:end]) for start, end in zip([0, *starts[1:]], ends, strict=True)]


def without_doubled_links(children: Sequence[Token]) -> Iterator[Token]:
    """Drops the link around a text that is its own target, so that it is shown once."""
    doubled = {
        index
        for index, (start, text) in enumerate(pairwise(children))
        if start.type == "link_open" and text.content == start.attrs.get("href")
    }
    for index, child in enumerate(children):
        if not (index in doubled or (child.type == "link_close" and index - 2 in doubled)):
            yield child


def markup(source: str, tokens: Sequence[Token]) -> Counter[str]:
    """Counts the characters of a text that its tokens use as markup, which need not be shown."""
    used: Counter[str] = Counter()
    lines = source.split("\n")
    for token in tokens:
        first, end = token.map or (0, 0)
        own = lines[first:end]
        match token.type:
            case "heading_open":
                used.update(token.markup)
                # One # at the end may belong to the title.
                if len(token.markup) > 1 and re.search(rf"[ \t]{token.markup}[ \t]*$", own[0]):
                    used.update(token.markup)
            case "blockquote_open":
                used.update(">" * len(own))
            case "list_item_open":
                used.update(token.info + token.markup)
            case "hr":
                used.update(own[0])
            case "table_open":
                used.update(own[1] + "|" * sum(line.count("|") for line in own))
                used.update("\\" * sum(line.count("\\|") for line in own))
            case "inline":
                used.update(_inline_markup(token.children or ()))
    return used


def splits_code(source: str, tokens: Sequence[Token]) -> bool:
    """Whether a table's cells are cut inside of code, at a bar that is not escaped."""
    lines = source.split("\n")
    rows = (
        line
        for token in tokens
        if token.type == "table_open" and token.map
        for line in lines[slice(*token.map)]
    )
    return any(
        "|" in code.replace("\\|", "") for row in rows for _, code in _CODE_SPAN.findall(row)
    )


def _inline_markup(children: Sequence[Token]) -> Iterator[str]:
    for token, following in pairwise([*children, Token("text", "", 0)]):
        if token.tag in ("em", "strong", "s"):
            yield from token.markup
        elif token.type == "code_inline":
            yield from token.markup * 2
        elif token.type == "link_open":
            yield from "<>" if token.markup == "autolink" else "[]"
            target = str(token.attrs["href"])
            if following.content == target and token.markup != "autolink":
                yield from f"({target})"


def _delimit(state: StateInline, silent: bool) -> bool:
    """Reads a run of ``*``, ``_`` or ``~~`` as the possible edge of emphasis, or as text."""
    start, source = state.pos, state.src
    mark = source[start]
    if silent or mark not in _MARKS:
        return False
    end = start
    while end < state.posMax and source[end] == mark:
        end += 1
    if dunder := _DUNDER.match(source, start, state.posMax):
        return _take(state, dunder.end(), silent)
    opens, closes = _edges(source, start, end)
    if not (opens or closes) or (mark == "~" and end - start != 2):
        return _take(state, end, silent)
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
        return not (_is_word(earlier) or earlier in tuple(")]"))  # a call or an index
    if char == "/":
        return strong and (_is_word(earlier) or earlier in tuple(_MARKS))
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
        return strong and (_is_word(later) or later in tuple(_MARKS))
    return bool(_NO_BLANKS.match(char)) and (strong or not char.isalnum())


def _is_word(char: str) -> bool:
    return bool(char) and (char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M")


def _keep_unlikely_emphasis(state: StateInline) -> None:
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


def _math(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "\\$":
        return False
    found = _MATH.match(state.src, state.pos, state.posMax)
    return bool(found) and _take(state, found.end() if found else 0, silent)


def _backslash(state: StateInline, silent: bool) -> bool:
    """Takes a backslash and the punctuation after it as text."""
    if state.src[state.pos] != "\\":
        return False
    following = state.src[state.pos + 1 : min(state.pos + 2, state.posMax)]
    escapes = following.isascii() and following.isprintable() and not following.isalnum()
    return _take(state, state.pos + 1 + (escapes and bool(following.strip())), silent)


def _link(state: StateInline, silent: bool) -> bool:
    start, source = state.pos, state.src
    if source[start] != "[" or source.find("](", start, state.posMax) < 0:
        return False
    if start and (_is_word(source[start - 1]) or source[start - 1] in ")]`"):
        return False  # an index and a call
    if not link(state, True):
        return False
    end, state.pos = state.pos, start
    label, _, address = source[start + 1 : end - 1].rpartition("](")
    if not (label.strip() and _ADDRESS.fullmatch(address) and unescapeAll(address) == address):
        return False
    return True if silent and _skip(state, end) else link(state, silent)


def _image(state: StateInline, silent: bool) -> bool:
    """Takes a picture as text: a terminal cannot show it."""
    start = state.pos
    if not state.src.startswith("![", start) or not image(state, True):
        return False
    end, state.pos = state.pos, start
    return _take(state, end, silent)


def _autolink(state: StateInline, silent: bool) -> bool:
    return bool(_AUTOLINK.match(state.src, state.pos)) and autolink(state, silent)


def _take(state: StateInline, end: int, silent: bool) -> bool:
    if not silent:
        state.append_pending(state.src[state.pos : end])
    return _skip(state, end)


def _skip(state: StateInline, end: int) -> bool:
    state.pos = end
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _display_math(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Takes LaTeX on lines of its own as it is, up to its end or an empty line."""
    text = _line(state, start)
    begin = next((begin for begin in _DISPLAY if text.startswith(begin)), None)
    if begin is None or _DISPLAY[begin] in text.removeprefix(begin):
        return False
    if silent:
        return True
    number = start + 1
    while number < end and not state.isEmpty(number) and state.sCount[number] >= state.blkIndent:
        number += 1
        if _DISPLAY[begin] in _line(state, number - 1):
            break
    token = state.push("math_block", "math", 0)
    token.content = state.getLines(start, number, state.blkIndent, False).rstrip("\n")
    token.map = [start, number]
    state.line = number
    return True


def _quote(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return not _NO_QUOTE.match(_line(state, start)) and blockquote(state, start, end, silent)


def _rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return len(_line(state, start).split()) == 1 and hr(state, start, end, silent)


def _list(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return not _NO_LIST.match(_line(state, start)) and list_block(state, start, end, silent)


def _make_parser() -> MarkdownIt:
    parser = _Parser("commonmark", {"html": False, "maxNesting": DEEPEST})
    parser.enable(["strikethrough", "table"])
    parser.disable(["escape", "entity", "html_inline", "html_block", "reference", "lheading"])
    block, inline = parser.block.ruler, parser.inline.ruler
    everywhere: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    block.before("fence", "math", _display_math, everywhere)
    block.at("blockquote", _quote, everywhere)
    block.at("hr", _rule, everywhere)
    block.at("list", _list, {"alt": ["paragraph", "reference", "blockquote"]})
    inline.before("backticks", "math", _math)
    inline.before("backticks", "backslash", _backslash)
    inline.at("strikethrough", _delimit)
    inline.disable("emphasis")
    inline.at("link", _link)
    inline.at("image", _image)
    inline.at("autolink", _autolink)
    parser.inline.ruler2.after("emphasis", "unlikely_emphasis", _keep_unlikely_emphasis)
    return parser


_PARSER = _make_parser()
