"""Replies on a terminal: nothing lost, nothing twice, nothing that commands it."""

import re
from functools import cache

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from d3cli.cli.chat import markdown
from d3cli.cli.chat.markdown import THEME, ReplyView
from d3cli.cli.chat.markdown_parser import split_blocks

SAMPLE = """\
# A heading

Some *emphasis*, **bold**, `code`, a [link](http://example.com) and <b>html</b>.
A second line of the same paragraph.

1. one
2. two
   - nested
10. three

```python
def double(x: int) -> int:
    return 2 * x
```

| left | right |
|---|---|
| 1 | 漢字 |

> A quote

The end. 🦊
"""


class Screen:
    """A terminal in memory: what is written to it, and what it then shows.

    Args:
        is_seen: whether anybody looks at what it shows, which takes most of the time to find.
    """

    encoding = "utf-8"

    def __init__(self, columns: int, rows: int, *, is_seen: bool = True) -> None:
        self._is_seen = is_seen
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000)
        self._stream = pyte.Stream(self.screen)
        self.raw = ""
        self.console = Console(
            file=self,  # type: ignore[arg-type]
            width=columns,
            height=rows,
            force_terminal=True,
            color_system="standard",
            theme=THEME,
            highlight=False,
            markup=False,
            emoji=False,
            _environ={},
        )

    def write(self, text: str) -> int:
        self.raw += text
        if self._is_seen:
            self._stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        above = [
            "".join(line[column].data for column in range(self.screen.columns))
            for line in self.screen.history.top
        ]
        lines = [line.rstrip() for line in [*above, *self.screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def shown(
    chunks: list[str],
    *,
    columns: int = 60,
    rows: int = 40,
    plain: bool = False,
    inside: str = "",
    is_seen: bool = True,
) -> Screen:
    screen = Screen(columns, rows, is_seen=is_seen)
    view = ReplyView(screen.console, plain=plain, inside=inside)
    for chunk in chunks:
        view.push(chunk)
    view.finish()
    return screen


@pytest.fixture(autouse=True)
def _draw_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "INTERVAL", 0.0)
    monkeypatch.setattr(markdown, "SHARE", 1e9)


def test_markdown_is_shown_as_what_it_means() -> None:
    screen = shown([SAMPLE])
    text = "\n".join(screen.lines)
    for part in (
        "A heading\n",
        "<b>html</b>",
        "link (http://example.com)",
        " 10. three",
        "The end.",
    ):
        assert part in text
    for mark in ("# A", "**", "*emphasis*", "`code`", "|---|"):
        assert mark not in text
    assert "of the same paragraph." in text.split("\n")[4]  # a line's end ends a line
    assert "```python\ndef double(x: int) -> int:\n    return 2 * x\n```" in text
    assert "\x1b[" in screen.raw.split("def")[0]
    assert "\x1b]8" not in screen.raw


WIDER = SAMPLE.replace("| 1 |", "| 1234 |")  # a table whose column grows as it arrives
CUTS = given(cuts=st.lists(st.integers(1, 30), max_size=60), rows=st.sampled_from([5, 10, 40]))


@cache
def shown_at_once() -> list[str]:
    return shown([WIDER]).lines


def check_cut(cuts: list[int], rows: int) -> None:
    chunks, rest = [], WIDER
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert shown([*chunks, rest], rows=rows).lines == shown_at_once()


@CUTS
@settings(max_examples=8)
def test_chunk_boundaries_and_the_height_of_the_screen_make_no_difference(
    cuts: list[int], rows: int
) -> None:
    check_cut(cuts, rows)


def test_an_item_keeps_its_shape_when_numbers_grow_after_it() -> None:
    check_cut([1, 1, 1, 6, 30, 30, 30, 30, 30], rows=5)


@pytest.mark.parametrize("source", ["1.", "-", "3) \n\nafter"])
def test_an_empty_item_shows_its_label(source: str) -> None:
    check_blocks(source)


@pytest.mark.slow
@CUTS
@settings(max_examples=40)
def test_many_chunk_boundaries_make_no_difference(cuts: list[int], rows: int) -> None:
    check_cut(cuts, rows)


DEEP = "before\n\n" + "\n".join("  " * n + f"- item{n:02d}" for n in range(60)) + "\n\nafter"


@pytest.mark.parametrize(
    "source",
    [
        DEEP,
        "\n".join(DEEP.split("\n")[:12]) + "\n\nafter",
        "> " * 25 + "quoted\n\nafter",
        "> " * 5000 + "x\n\nafter",
        "- " * 3000 + "x",
        "*a " * 3000,
        "[" * 2000 + "x",
        "|a|b|\n|-|-|\n|1|2|lost|",
        "| " + " | ".join(f"column{n}" for n in range(30)) + " |\n" + "|-" * 30 + "|\n",
        pytest.param(
            "|" + "a|" * 2000 + "\n|" + "-|" * 2000 + "\n" + ("|" + "b|" * 2000 + "\n") * 9,
            marks=pytest.mark.slow,
        ),
        "| site | of |\n|---|---|\n| https://en.wikipedia.org/wiki/Very_long_address_of_it | x |\n",
        '[secret]: http://x "title"\n\nafter',
        "![alt text](http://picture)",
        "&amp; &nbsp; &#65;",
        "```python title=main.py\nx\n```",
        "a " * 50_000,
    ],
    ids=range(16),
)
def test_nothing_is_lost_that_markdown_cannot_show(source: str) -> None:
    text = "".join("".join(line.split()) for line in shown([source], rows=10).lines)
    for word in set(re.findall(r"[a-z]+\d*", source)):
        assert word in text or "wikipedia" in source
    assert len(re.findall(r"\w", text)) >= len(re.findall(r"\w", source))


def test_a_link_that_is_its_own_text_stands_once() -> None:
    assert shown(["<http://a.b> and [x](http://c)"]).lines == ["http://a.b and x (http://c)"]


def test_a_reply_of_many_screens_is_all_in_the_scrollback() -> None:
    code = "".join(f"line_{number} = {number}\n" for number in range(300))
    chunks = [
        f"Here:\n\n```python\n{code[:1500]}",
        *re.findall(".{1,200}", code[1500:], re.S),
        "```",
    ]
    screen = shown(chunks, rows=8)
    numbers = [int(line.split(" = ")[1]) for line in screen.lines if line.startswith("line_")]
    assert numbers == list(range(300))


def test_plain_text_is_left_as_it_is() -> None:
    assert shown([SAMPLE], plain=True, columns=100).lines == SAMPLE.rstrip().split("\n")


@pytest.mark.parametrize("plain", [True, False])
def test_reasoning_is_dim_and_the_answer_is_not(plain: bool) -> None:
    screen = shown(["<thi", "nk>\nHm.\n</th", "ink>\n\nYes."], plain=plain)
    assert "\x1b[2m" in screen.raw.split("Hm.")[0]
    after = screen.raw.split("ink>")[-1]
    assert "Yes." in after
    assert "\x1b[2m" not in after
    assert screen.lines[:3] == ["<think>", "Hm.", "</think>"]
    assert screen.lines[-1] == "Yes."


def test_reasoning_that_the_prompt_opened_is_dim_too() -> None:
    screen = shown(["Hm.</think>Yes."], inside="<think>")
    assert screen.raw.startswith("\x1b[2mHm.")


OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[hl]|\x1b\[2K|\x1b\[[0-9]*A|\r|\n|\t")
FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
KNOWN = [
    "\x1b[2J",
    "\x1b]8;;http://x\x1b\\click\x1b]8;;\x1b\\",
    "\x1b]52;c;aGk=\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "[bold red]x[/]",
    ":smile:",
    "&#27;[31m",
    "&#x202e;",
    "&#155;1m",
    "\r\x08",
    "[a](javascript:\x1b[0m)",
    "![\x1b](\x9b)",
    "```\x1b[5m\n\x1b]0;t\x07\n```",
    "|\x1b|\n|-|\n|\x9b|\n",
    "<think>\x1b[1m</think>",
    "\x1bPq\x1b\\",
]
HOSTILE = st.one_of(st.text(max_size=20), st.sampled_from(KNOWN))


PIECES = given(chunks=st.lists(HOSTILE, max_size=12), plain=st.booleans())


def check_inert(chunks: list[str], plain: bool) -> None:
    text = "".join(chunks)
    for cut in ([text], list(text)):
        raw = shown(cut, plain=plain, is_seen=False).raw
        assert not FORBIDDEN.search(OWN.sub("", raw))


@PIECES
@settings(max_examples=15)
def test_no_text_commands_the_terminal(chunks: list[str], plain: bool) -> None:
    check_inert(chunks, plain)


@pytest.mark.slow
@PIECES
@settings(max_examples=60)
def test_none_of_many_texts_commands_the_terminal(chunks: list[str], plain: bool) -> None:
    check_inert(chunks, plain)


@pytest.mark.parametrize("plain", [True, False])
def test_each_known_way_to_command_a_terminal_is_shown_instead(plain: bool) -> None:
    check_inert(KNOWN, plain)


def test_markup_and_emoji_codes_stay_text() -> None:
    for plain in (True, False):
        lines = shown(["[bold red]x[/] :smile: [link=http://x]y[/link]"], plain=plain).lines
        assert lines == ["[bold red]x[/] :smile: [link=http://x]y[/link]"]


@given(st.text(alphabet="ab#`-*>| \n\u2028\x0c\r1.", max_size=60))
def test_blocks_are_cut_without_loss(source: str) -> None:
    from d3cli.base.inert import inert

    assert "".join(split_blocks(inert(source))) == inert(source)


LITERAL = {
    "arithmetic": ["100*20/4*5", "2*3*4", "2**3**4", "f(x)*g(x)*h(x)", "(a)*b*(c)", "长*宽*高"],
    "names": ["__init__", "x.__name__ is __main__", "a_b_c", "snake_case_name", "_x and __y"],
    "code": ["*args, **kwargs", "f(*a)*g(*b)", "(*x) and (*y)", "(*x) and (y*)", "char *p, *q;"],
    "regexes": [r"\d+\.\d*", "^.*$", "[a-z]_*", r"(.*)_(.*)", r"\*.*\*", "a\\|b", "[0-9](x)"],
    "paths": ["C:\\_temp", "\\\\server\\share\\_x", "C:\\*.txt", "~/a~~b"],
    "LaTeX": [r"\(x^2\)", r"\[ a_1*y*z \]", "$a_1*b_1$ and $*a*$", r"\frac{a}{b} \\", "x^{*}y^{*}"],
    "display": ["$$\nx_1 *a*\n+ y\n$$", "\\[\nx\n- *y*\n\\]", "\\begin{a}\n* x *\n\\end{a}"],
    "globs": ["*.py and *.js", "src/**/test/*.py", '"*.py" or "*.js"', "* * * * * cmd", "*/5 * *"],
    "SQL": ["COUNT(*) and SUM(*)", "'*' or '*'", "SELECT *, count(*)"],
    "comments": ["/*foo*/ x", "/**doc**/ y"],
    "footnotes": ["price* and all*", "price* and *terms"],
    "HTML": ["<T> of List<int>", "vector<std::string>", "&lt; and &amp;", "a < b > c"],
    "comparisons": [">= 5", "> 5", ">>> print(1)"],
    "lists": ["3. three", "7) seven", "2. two\n5. five", "+ 30", "- 5", "007. Bond"],
    "calls": ["arr[0](x)", "[](int x)", "handlers[name](event)"],
    "references": ["[1]: http://x", "![alt](http://x/_y_)", "[C#](x)"],
    "tables": ["| a | b |\n|--|--|\n| `x|y` | z |"],
    "headings": ["#hashtag", "# Learn C #"],
    "strikethrough": ["~~", "a~~b~~c", "~~~~ x"],
}


def essence(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("kind", LITERAL)
def test_what_is_no_markup_stays(kind: str) -> None:
    for source in LITERAL[kind]:
        for chunks in ([source], list(source)):
            for text in (source, f"see\n\n{source}\n\nthen"):
                lines = shown([text] if len(chunks) == 1 else list(text), columns=100).lines
                assert essence(source) in essence("".join(lines))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("**bold** *it* _it_ __two words__", "bold it it two words"),
        ("***both*** (*x*) **Note (a)**: **a.**", "both x Note (a): a."),
        ("**Bob**'s **`c`** *q*, **in**/**out**", "Bob's c q, in/out"),
        ("这是**重点**的", "这是重点的"),
        (r"**\(x_1\)** and **[a](http://x/_y_)**", r"\(x_1\) and a (http://x/_y_)"),
        ("~~old~~ new", "old new"),
    ],
)
def test_emphasis_of_words_is_emphasis(source: str, text: str) -> None:
    screen = shown([source])
    assert essence(screen.lines[0]).replace("(x)", "x") == essence(text)
    assert "\x1b[" in screen.raw


def test_a_line_of_dashes_makes_no_heading() -> None:
    lines = shown(["  12\n+ 30\n----\n42"]).lines
    assert lines[0] == "12"
    assert " + 30" in lines
    assert "\x1b[1m12" not in shown(["12\n---\n42"]).raw


def test_a_block_is_not_ended_by_a_line_that_is_not_complete() -> None:
    for source in ("text\n***x*** y", "text\n# x", "text\n---x", "a\n|b|c|\n|-|-|x"):
        assert shown(list(source)).lines == shown([source]).lines


# Characters that are never markup here, and the marks, which are only if they surround words.
MEANINGFUL = "ab1\\^$%&;={}/.,?!@'\"漢"
INLINE = given(st.text(alphabet=MEANINGFUL + "*_~`() ", max_size=24))
BLOCKS = given(st.text(alphabet=MEANINGFUL + "*_~`()[]<>|#+- \n", max_size=40))
# Where a mark may open: at the beginning, after a blank, a bracket, a quote, or in CJK.
OPENS = re.compile(r"(?:^|[\s(\[\"'*_~/-]|[漢])(?:\*+|_+|~~)(?=\S)")


def check_inline(text: str) -> None:
    source = "x " + text
    seen = "".join(shown([source], columns=200).lines)
    for char in set(source) - set("*_~` "):
        assert seen.count(char) == source.count(char)
    for mark in "*_~`":
        lost = source.count(mark) - seen.count(mark)
        assert lost >= 0
        assert lost % 2 == 0
        assert mark == "`" or lost == 0 or OPENS.search(source)


def check_blocks(source: str) -> None:
    lines = shown([source], columns=200).lines
    seen = "".join(lines)
    for char in MEANINGFUL:
        assert seen.count(char) >= source.count(char)
    assert shown(list(source), columns=200).lines == lines


@INLINE
@settings(max_examples=60)
def test_only_marks_around_words_disappear(text: str) -> None:
    check_inline(text)


@BLOCKS
@settings(max_examples=30)
def test_no_meaning_disappears_at_any_cut(source: str) -> None:
    check_blocks(source)


@pytest.mark.slow
@INLINE
@settings(max_examples=500)
def test_only_marks_around_words_disappear_from_many_texts(text: str) -> None:
    check_inline(text)


@pytest.mark.slow
@BLOCKS
@settings(max_examples=150)
def test_no_meaning_disappears_at_any_cut_of_many_texts(source: str) -> None:
    check_blocks(source)
