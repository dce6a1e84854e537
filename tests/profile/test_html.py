"""The HTML report: one inert file that shows the trace. Some tests open it in a real browser."""

import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from d3cli.profile.cells import Cell, cells
from d3cli.profile.html.page import html_report
from d3cli.profile.trace import Trace
from tests.browser import Browser, find_chromium
from tests.traces import HOSTILE, hostile_lossless_trace, hostile_trace, made_trace, whole_trace

needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium on this machine: the page was not opened"
)


TAGS = """html head meta title style body header h1 h2 button main p dl dt dd div small b ul li
label select option section figure figcaption span i details summary pre table thead tbody tr th td
noscript script input del"""


class Page(HTMLParser):
    """The elements of a page, and its text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._raw = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data


def test_a_token_without_dropped_units_has_empty_cells() -> None:
    made = made_trace([4, 3], [1.0])
    [reply] = made.replies
    tokens = (reply.tokens[0], replace(reply.tokens[1], dropped_units=None))
    assert cells(made, reply, tokens) == [[Cell.RUN, None]] * 4
    assert html_report(replace(made, replies=(replace(reply, tokens=tokens),)))


@pytest.mark.parametrize("make", [whole_trace, hostile_trace, hostile_lossless_trace])
def test_the_page_is_inert_and_makes_no_request(make: object) -> None:
    text = html_report(make())  # type: ignore[operator]
    page = Page(text)
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert len(scripts) == 3
    assert {tag for tag, _ in page.tags} <= set(TAGS.split())
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("src", "href")}
    [policy] = [
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and "http-equiv" in attributes
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert policy.count("'sha256-") == 2
    assert "unsafe-eval" not in policy and "http" not in policy
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.text)


def test_hostile_texts_stay_texts() -> None:
    for trace in (hostile_trace(), hostile_lossless_trace()):
        page = Page(html_report(trace))
        for attack in HOSTILE[:8]:
            assert attack.replace("\\", "\\\\") in page.text


def test_a_reply_without_decode_steps_has_a_page() -> None:
    for depths in ([], [4.0]):
        page = Page(html_report(made_trace(depths, [])))
        assert "no decode step" in page.text


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    opened = Browser()
    yield opened
    opened.close()


def opened(browser: Browser, trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html_report(trace), encoding="utf-8")
    browser.problems.clear()
    browser.requests.clear()
    browser.prefer("light")
    browser.resize(1100, 900)
    browser.open(path)


def hover(browser: Browser, chart: str, x: float, y: float) -> str:
    """The label at a point of a chart; `x` and `y` are fractions of the plot."""
    place = f"document.getElementById('{chart}')"
    browser.run(f"{place}.scrollIntoView({{block: 'center'}})")
    box = browser.run(
        f"(() => {{ const r = {place}.querySelector('.nsewdrag').getBoundingClientRect();"
        " return [r.left, r.top, r.width, r.height]; })()"
    )
    for _ in range(50):
        browser.move(box[0] + x * box[2] + 1, box[1] + y * box[3])
        browser.move(box[0] + x * box[2], box[1] + y * box[3])
        time.sleep(0.1)
        text = browser.run(f"{place}.querySelector('.hoverlayer').textContent")
        if text:
            return str(text)
    return ""


@needs_chromium
class TestInChromium:
    def test_it_draws_every_cell_without_a_message(self, browser: Browser, tmp_path: Path) -> None:
        trace = whole_trace()
        opened(browser, trace, tmp_path)
        drawn = browser.run(
            "(() => { const z = document.getElementById('chart-0-layers').calcdata[0][0].z;"
            " return [z.length, z[0].length, z.flat().filter((s) => s === 3).length]; })()"
        )
        reply = trace.replies[0]
        run = sum(token.depth for token in reply.tokens)
        assert drawn == [16, len(reply.tokens), run]
        shown = browser.run("document.querySelectorAll('section:not([hidden]) .main-svg').length")
        assert shown >= 6
        rows = browser.run("document.querySelectorAll('#reply-0 tbody tr').length")
        assert rows == len(reply.tokens)
        assert browser.problems == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []

    @pytest.mark.slow
    def test_hovering_shows_the_token(self, browser: Browser, tmp_path: Path) -> None:
        trace = whole_trace()
        opened(browser, trace, tmp_path)
        count = len(trace.replies[0].tokens)
        text = hover(browser, "chart-0-layers", 20.5 / count, 0.5 / 16)
        token = trace.replies[0].tokens[20]
        assert "layer 15: run" in text
        assert f'token 20: "{token.text}"' in text
        assert f"depth {token.depth:.4g}" in text
        assert f"{token.ms:.1f} ms" in text
        assert "full depth" in text
        skipped = hover(browser, "chart-0-layers", (count - 0.5) / count, 8.5 / 16)
        assert "skipped" in skipped
        assert browser.problems == []

    def test_the_table_sorts(self, browser: Browser, tmp_path: Path) -> None:
        trace = whole_trace()
        opened(browser, trace, tmp_path)
        titles = browser.run(
            "[...document.querySelectorAll('#reply-0 th')].map((title) => title.textContent)"
        )
        at = titles.index("ms")
        rows = "[...document.querySelectorAll('#reply-0 tbody tr')]"
        column = f"{rows}.map((row) => row.cells[{at}].textContent)"
        for up in (True, False):
            browser.run(f"document.querySelectorAll('#reply-0 th button')[{at}].click()")
            values = browser.run(column)
            assert values[-1] == ""  # token 0 has no time, so it is always last
            numbers = [float(value) for value in values[:-1]]
            assert numbers == sorted(numbers, reverse=not up)

    @pytest.mark.slow
    def test_another_reply_and_another_theme(self, browser: Browser, tmp_path: Path) -> None:
        opened(browser, whole_trace(), tmp_path)
        paper = "getComputedStyle(document.body).backgroundColor"
        assert browser.run(paper) == "rgb(255, 255, 255)"
        browser.prefer("dark")
        time.sleep(0.3)
        assert browser.run(paper) == "rgb(20, 24, 31)"
        browser.click("#theme")
        assert browser.run(paper) == "rgb(255, 255, 255)"
        browser.run(
            "(() => { const c = document.getElementById('choose'); c.value = '1';"
            " c.dispatchEvent(new Event('change')); })()"
        )
        assert browser.run("document.getElementById('reply-0').hidden") is True
        cells_drawn = browser.run(
            "document.getElementById('chart-1-layers').calcdata[0][0].z[0].length"
        )
        assert cells_drawn == len(whole_trace().replies[1].tokens)
        assert browser.problems == []

    @pytest.mark.slow
    def test_it_fits_a_phone(self, browser: Browser, tmp_path: Path) -> None:
        opened(browser, whole_trace(), tmp_path)
        browser.resize(360, 780, phone=True)
        time.sleep(0.5)
        assert browser.run("document.documentElement.scrollWidth") <= 360
        places = browser.run(
            "[...document.querySelectorAll('#reply-0 figure')].map((f) => {"
            " const r = f.getBoundingClientRect(); return [r.top, r.bottom, r.width]; })"
        )
        for (_, bottom, width), (top, _, _) in itertools.pairwise(places):
            assert bottom <= top + 1
            assert width <= 360
        svg = "document.querySelector('#chart-0-depth .main-svg').getBoundingClientRect()"
        assert 200 < browser.run(f"{svg}.width") <= 360
        browser.resize(1100, 900)

    @pytest.mark.slow
    def test_hostile_texts_do_nothing(self, browser: Browser, tmp_path: Path) -> None:
        trace = hostile_trace()
        opened(browser, trace, tmp_path)
        count = len(trace.replies[0].tokens)
        for at in (0, 1, 4):
            text = hover(browser, "chart-0-layers", (at + 0.5) / count, 0.5 / 16)
            assert HOSTILE[at].split("=")[0] in text.replace("\u00a0", " ")
        assert browser.run("window.hacked") is None
        assert (
            browser.run("document.querySelectorAll('img[src=x], a[href^=javascript]').length") == 0
        )
        assert browser.run("document.querySelectorAll('.hoverlayer a').length") == 0
        assert browser.problems == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def test_a_trace_without_step_times() -> None:
    """Found by scripts/fuzz.py: the whole reply has a speed, but its tokens have no times."""
    trace = made_trace([4, 4], [10.0])
    tokens = tuple(replace(token, ms=None) for token in trace.replies[0].tokens)
    page = html_report(replace(trace, replies=(replace(trace.replies[0], tokens=tokens),)))
    assert "tokens per second" in page
    assert "TPOT" not in page
