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
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.common.utils import unescapeAll
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock, blockquote, hr, list_block
from markdown_it.rules_inline import StateInline, autolink, image, link
from markdown_it.token import Token

from d3cli.cli.chat.markdown_emphasis import delimit, is_word, keep_unlikely_emphasis, skip, take

DEEPEST = 40  # levels of nesting; the parser silently drops what is nested more deeply

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


def _math(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "\\$":
        return False
    found = _MATH.match(state.src, state.pos, state.posMax)
    return bool(found) and take(state, found.end() if found else 0, silent)


def _backslash(state: StateInline, silent: bool) -> bool:
    """Takes a backslash and the punctuation after it as text."""
    if state.src[state.pos] != "\\":
        return False
    following = state.src[state.pos + 1 : min(state.pos + 2, state.posMax)]
    escapes = following.isascii() and following.isprintable() and not following.isalnum()
    return take(state, state.pos + 1 + (escapes and bool(following.strip())), silent)


def _link(state: StateInline, silent: bool) -> bool:
    start, source = state.pos, state.src
    if source[start] != "[" or source.find("](", start, state.posMax) < 0:
        return False
    if start and (is_word(source[start - 1]) or source[start - 1] in ")]`"):
        return False  # an index and a call
    if not link(state, True):
        return False
    end, state.pos = state.pos, start
    label, _, address = source[start + 1 : end - 1].rpartition("](")
    if not (label.strip() and _ADDRESS.fullmatch(address) and unescapeAll(address) == address):
        return False
    return True if silent and skip(state, end) else link(state, silent)


def _image(state: StateInline, silent: bool) -> bool:
    """Takes a picture as text: a terminal cannot show it."""
    start = state.pos
    if not state.src.startswith("![", start) or not image(state, True):
        return False
    end, state.pos = state.pos, start
    return take(state, end, silent)


def _autolink(state: StateInline, silent: bool) -> bool:
    return bool(_AUTOLINK.match(state.src, state.pos)) and autolink(state, silent)


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
    inline.at("strikethrough", delimit)
    inline.disable("emphasis")
    inline.at("link", _link)
    inline.at("image", _image)
    inline.at("autolink", _autolink)
    parser.inline.ruler2.after("emphasis", "unlikely_emphasis", keep_unlikely_emphasis)
    return parser


_PARSER = _make_parser()
