"""Nothing that passes the sink can command a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.inert import inert
from d3cli.cli.output import Output

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://evil\x07link\x1b]8;;\x07",
    "\x1b]52;c;ZXZpbA==\x07",
    "\x9b2J",
    "\x90q\x9c",
    "over\rwrite",
    "\u202egnp.exe",
    "\u2066isolated",
    "bell\x07 del\x7f nul\x00",
    "[bold red]markup[/] :smile:",
]


@given(st.text())
def test_inert_text_holds_no_control_character(text: str) -> None:
    for character in inert(text):
        assert character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
        assert unicodedata.bidirectional(character) not in (
            *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"),
        )


@given(st.text(), st.integers(0, 20))
def test_it_does_not_matter_where_chunks_are_cut(text: str, cut: int) -> None:
    assert inert(text[:cut]) + inert(text[cut:]) == inert(text)


@given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs"))))
def test_ordinary_text_is_untouched(text: str) -> None:
    assert inert(text) == text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_every_sink_shows_hostile_text_inert(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.write(text)
    output.note(text)
    output.error(text, text)
    output.json({"text": text})
    captured = capsys.readouterr()
    for character in captured.out + captured.err:
        assert character == "\n" or unicodedata.category(character) != "Cc"
        assert unicodedata.bidirectional(character) not in ("RLO", "LRI")
    if "markup" in text:
        assert captured.err.count("[bold red]markup[/] :smile:") == 3
