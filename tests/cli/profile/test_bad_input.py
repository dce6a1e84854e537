"""What `d3 profile` refuses, and hostile texts in its reports."""

from pathlib import Path

import pytest

from d3cli.cli.output import json_line
from d3cli.profile.summary import with_figures
from tests.cli.profile.conftest import CONTROL
from tests.conftest import D3, check
from tests.traces import (
    STORY,
    hostile_trace,
)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("--against", "a.json"), "--against compares two recorded runs"),
            ((STORY, "-o", "csv", "--json"), "--json and -o csv exclude each other"),
            ((STORY, "--repeat", "0"), "--repeat"),
            ((STORY, "--alpha", "2"), "outside (0, 1]"),
            ((STORY, "--raw", "--system", "Go."), "--raw uses no chat template"),
            ((STORY, "--start", "10%"), "--max-tokens"),
            (("--input", "p.jsonl", "--prompt", "x"), "comes from --input and from --prompt"),
            (("--input", "/nowhere/p.jsonl"), "there is no prompts file"),
            (("",), "the prompt is empty"),
            (("llama-3-9b", "--prompt", "x"), "llama-3-9b"),
        ],
    )
    def test_wrong_options_are_refused(self, d3: D3, arguments: tuple[str, ...], says: str) -> None:
        check(d3("profile", *arguments), 2, says)

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("{", "line 2: input data was truncated"),
            ("[" * 100_000, "line 2: "),
            ("3", "line 2: expected `object`, got `int`"),
            ("{}", 'line 2: it needs exactly one of "prompt" and "messages"'),
            ('{"prompt": "a", "messages": [{"role": "user", "content": "x"}]}', "exactly one of"),
            ('{"prompt": 3}', "line 2: expected `str | null`, got `int`, at `$.prompt`"),
            ('{"prompt": " "}', "the last message must be the user's"),
            ('{"messages": []}', "length >= 1, at `$.messages`"),
            ('{"messages": [{"role": "tool", "content": "x"}]}', "invalid enum value 'tool'"),
            ('{"messages": [{"role": "user"}]}', "missing required field `content`"),
            ('{"messages": [{"role": "assistant", "content": "x"}]}', "must be the user's"),
            ('{"prompt": "\\ud800"}', "line 2: "),
        ],
    )
    def test_a_bad_row_is_named(self, d3: D3, tmp_path: Path, line: str, says: str) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text('{"prompt": "Hi."}\n' + line + "\n")
        check(d3("profile", "--input", path), 2, says)

    def test_a_recorded_run_takes_no_other_options(self, d3: D3, trace_file: Path) -> None:
        for extra in ((STORY,), ("--alpha", "0.9"), ("--compare",), ("--max-tokens", "3")):
            check(
                d3("profile", "--from", trace_file, *extra), 2, "it draws a run as it was recorded"
            )
        for form in ("csv", "html"):
            result = d3("profile", "--from", trace_file, "--against", trace_file, "-o", form)
            check(result, 2, f"cannot be written as {form}")

    def test_damaged_traces_are_one_line(self, d3: D3, tmp_path: Path, trace_file: Path) -> None:
        whole = trace_file.read_text()
        cases = {
            "newer": whole.replace('"schema": 3', '"schema": 9', 1),
            "half": whole[: len(whole) // 2],
            "other": '{"hello": 1}',
        }
        for name, text in cases.items():
            path = tmp_path / f"{name}.json"
            path.write_text(text)
            says = "a newer d3" if name == "newer" else "is not a valid trace"
            check(d3("profile", "--from", path), 2, says)
            check(d3("profile", "--from", trace_file, "--against", path), 2, says)
        check(d3("profile", "--from", tmp_path / "none"), 2, "there is no trace")

    def test_hostile_texts_are_inert_in_every_form(self, d3: D3, tmp_path: Path) -> None:
        path = tmp_path / "h.json"
        path.write_text(json_line(with_figures(hostile_trace())))
        for form in ("table", "json", "csv"):
            result = d3("profile", "--from", path, "-o", form)
            assert result.code == 0
            assert not CONTROL.search(result.out), form
        result = d3("profile", "--from", path, "--against", path)
        assert not CONTROL.search(result.out)
