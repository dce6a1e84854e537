"""Draws Markdown with Rich: headings, code, lists, and tables as a terminal can show them."""

from collections.abc import Iterator
from itertools import accumulate
from typing import ClassVar

from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.markdown import (
    CodeBlock,
    Heading,
    ListElement,
    ListItem,
    Markdown,
    MarkdownElement,
    TextElement,
)
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from d3cli.cli.chat.markdown_parser import (
    DEEPEST,
    markup,
    parse,
    splits_code,
    without_doubled_links,
)

# The colours of the terminal's own palette, which are readable on light and on dark.
CODE_THEME = "ansi_dark"
# Blocks beyond these are shown as plain text: columns of a table, characters.
MOST_COLUMNS, LONGEST_BLOCK = 40, 65536


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _CodeBlock(CodeBlock):
    """Highlighted code on the terminal's own background, between dim fences."""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_CodeBlock":
        """A block whose fences are as they were written."""
        lexer = token.info.partition(" ")[0] or "text"
        block = cls(lexer, markdown.code_theme)
        block.fence, block.info = token.markup or "```", token.info
        return block

    fence, info = "```", ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"{self.fence}{self.info}", style="dim", overflow="fold")
        code = str(self.text).removesuffix("\n")
        if code:
            yield Syntax(
                code, self.lexer_name, theme=self.theme, word_wrap=True, background_color="default"
            )
        yield Text(self.fence, style="dim")


class _Math(TextElement):
    """LaTeX, as it was written."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.overflow = "fold"
        yield self.text


class _ListItem(ListItem):
    number, mark = "", ""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_ListItem":  # noqa: ARG003
        """An item that knows how its number or mark was written."""
        item = cls()
        item.number, item.mark = token.info, token.markup
        return item

    @property
    def bullet(self) -> str:
        """A dot, or the mark itself where it may be a sign: before a number, and a plus."""
        first = next(iter(self.elements._renderables), None)
        text = first.text.plain if isinstance(first, TextElement) else ""
        may_be_sign = self.mark == "+" or text[:1].isdigit() or text[:1] in tuple("$(=.")
        return self.mark if may_be_sign else "\N{BULLET}"

    def render_labelled(
        self, console: Console, options: ConsoleOptions, label: str, width: int, style: str
    ) -> RenderResult:
        """The item with this label before its first line."""
        label_style = console.get_style(style, default="none")
        inner = options.update(width=max(1, options.max_width - width - 2))
        lines = console.render_lines(self.elements, inner, style=self.style)
        for number, line in enumerate(lines or [[]]):  # an empty item has a label, too
            yield Segment(f" {'' if number else label:>{width}} ", label_style)
            yield from line
            yield Segment("\n")


class _List(ListElement):
    """A list with the numbers that were written, unless the second repeats the first.

    An item looks the same whatever follows it: the beginning of a long list may be on the screen
    before its end is written.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        items = [item for item in self.items if isinstance(item, _ListItem)]
        ordered = self.list_type != "bullet_list_open"
        labels = list(self._numbers(items)) if ordered else [item.bullet for item in items]
        widths = accumulate(map(len, labels), max)
        style = "markdown.item.number" if ordered else "markdown.item.bullet"
        for item, label, width in zip(items, labels, widths, strict=True):
            yield from item.render_labelled(console, options, label, width, style)

    @staticmethod
    def _numbers(items: list[_ListItem]) -> Iterator[str]:
        written = [int(item.number) for item in items]
        repeat = len(set(written[:2])) < len(written[:2])
        for index, item in enumerate(items):
            yield f"{written[0] + index if repeat else item.number}{item.mark}"


class ReplyMarkdown(Markdown):
    """Markdown as models write it: HTML is text, line breaks are kept, and links do not open.

    Attributes:
        used_as_markup: the characters of the source that need not be shown.
    """

    elements: ClassVar[dict[str, type[MarkdownElement]]] = Markdown.elements | {
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "math_block": _Math,
        "bullet_list_open": _List,
        "ordered_list_open": _List,
        "list_item_open": _ListItem,
    }

    def __init__(self, source: str) -> None:
        # Rich's own parser silently drops HTML.
        super().__init__("", code_theme=CODE_THEME, hyperlinks=False)
        self.parsed = parse(source)
        self.used_as_markup = markup(source, self.parsed)
        for token in self.parsed:
            if token.children:
                token.children = list(without_doubled_links(token.children))
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def readable(source: str) -> Markdown | Text:
    """A block as Markdown, or as plain text if Markdown would lose something or take long."""
    plain = Text(source, overflow="fold")
    if len(source) > LONGEST_BLOCK:
        return plain
    markdown = ReplyMarkdown(source)
    columns = sum(token.type == "th_open" for token in markdown.parsed)
    # The parser silently drops what is nested more deeply.
    deepest = max((token.level for token in markdown.parsed), default=0)
    if columns > MOST_COLUMNS or deepest >= DEEPEST - 1 or splits_code(source, markdown.parsed):
        return plain
    return markdown
