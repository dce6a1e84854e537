"""Files that `d3 profile` writes."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from d3cli.cli.profile.tables import report
from d3cli.profile.trace_file import read_trace
from tests.cli.profile.conftest import FAST
from tests.conftest import D3, check
from tests.traces import (
    STORY,
    SUM,
    whole_trace,
)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "begins"),
        [("a.json", "{"), ("a.csv", "reply,"), ("a.HTML", "<!doctype"), ("a.txt", "step")],
    )
    def test_the_form_follows_from_the_file_name(
        self, d3: D3, tmp_path: Path, trace_file: Path, name: str, begins: str
    ) -> None:
        path = tmp_path / name
        result = d3("profile", "--from", trace_file, "--output-file", path)
        assert result.code == 0
        assert result.out == ""
        assert f"wrote {path}" in " ".join(result.err.split())
        assert begins in path.read_text(encoding="utf-8")[:60].lstrip() or name == "a.txt"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_link_and_a_pipe_are_not_replaced(
        self, d3: D3, tmp_path: Path, trace_file: Path
    ) -> None:
        target, link = tmp_path / "target.csv", tmp_path / "link.csv"
        target.write_text("old")
        link.symlink_to(target)
        assert d3("profile", "--from", trace_file, "--output-file", link).code == 0
        assert link.is_symlink()
        assert target.read_text().startswith("reply,")
        pipe = tmp_path / "null"
        os.mkfifo(pipe)
        reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
        result = d3("profile", "--from", trace_file, "-o", "csv", "--output-file", pipe)
        assert result.code == 0
        assert reader.communicate()[0].startswith(b"reply,")
        assert stat.S_ISFIFO(pipe.stat().st_mode)

    def test_process_substitution_is_written(self, trace_file: Path) -> None:
        words = f"{sys.executable} -m d3cli profile --from {trace_file} --output-file >(cat) -o csv"
        done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "reply," in done.stdout

    def test_an_unwritable_file_is_refused_before_the_run(self, d3: D3, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "none" / "a.json"):
            result = d3("profile", STORY, "--output-file", path)
            check(result, 2, "is a directory" if path == tmp_path else "there is no directory")
            assert not result.out

    def test_a_failing_prompt_replaces_nothing(self, d3: D3, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        path.write_text("kept")
        long = tmp_path / "long.txt"
        long.write_text("word " * 4000)
        for arguments in (("--prompt-file", long), (SUM, "--stop", "")):
            check(d3("profile", *arguments, "--output-file", path), 2, "")
            assert path.read_text() == "kept"
            check(d3("profile", *arguments), 2, "")
        rows = tmp_path / "p.jsonl"
        rows.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in (SUM, "word " * 4000)))
        result = d3("profile", "--input", rows, "--repeat", "1000")
        check(result, 2, "the prompt is")  # before the first prompt runs a thousand times

    def test_inputs_are_not_replaced(self, d3: D3, tmp_path: Path, trace_file: Path) -> None:
        prompt_file, link = tmp_path / "p.txt", tmp_path / "link.txt"
        prompt_file.write_text(SUM)
        link.symlink_to(prompt_file)
        rows = tmp_path / "p.jsonl"
        rows.write_text(json.dumps({"prompt": SUM}))
        for arguments in (
            ("--from", trace_file, "--output-file", trace_file),
            ("--from", trace_file, "--against", rows, "--output-file", rows),
            ("--prompt-file", prompt_file, "--output-file", link),
            ("--input", rows, "--output-file", rows),
        ):
            check(d3("profile", *arguments), 2, "is an input, so the result cannot replace it")
        assert read_trace(trace_file) == whole_trace()
        assert prompt_file.read_text() == SUM

    def test_an_existing_file_keeps_its_mode(
        self, d3: D3, tmp_path: Path, trace_file: Path
    ) -> None:
        path = tmp_path / "a.csv"
        path.write_text("old")
        path.chmod(0o664)
        assert d3("profile", "--from", trace_file, "--output-file", path).code == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o664
        path.chmod(0o444)
        check(d3("profile", "--from", trace_file, "--output-file", path), 2, "is read-only")

    def test_odd_places(self, d3: D3, tmp_path: Path, trace_file: Path) -> None:
        loop, dangling = tmp_path / "loop.json", tmp_path / "dangling.json"
        loop.symlink_to(loop)
        dangling.symlink_to(tmp_path / "none" / "x.json")
        for path, says in ((loop, "cannot be written: "), (dangling, "there is no directory ")):
            result = d3("profile", "--from", trace_file, "--output-file", path)
            check(result, 2, says)
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        result = d3("profile", "--from", trace_file, "-o", "csv", "--output-file", pipe)
        assert result.code == 1  # without a reader the result goes to stdout, and nothing hangs
        assert result.out.startswith("reply,")
        longest = tmp_path / ("n" * 250 + ".csv")
        assert d3("profile", "--from", trace_file, "--output-file", longest).code == 0

    def test_a_dash_is_stdin_or_stdout(
        self, d3: D3, trace_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = d3("profile", "--from", trace_file, "-o", "csv", "--output-file", "-").out
        assert whole.startswith("reply,")
        data = b"\xef\xbb\xbf" + trace_file.read_bytes()
        assert d3("profile", "--from", "-", "-o", "csv", stdin=data).out == whole

    def test_a_recorded_run_is_drawn_without_torch(self, trace_file: Path, tmp_path: Path) -> None:
        code = (
            "import sys; from d3cli.cli.app import run\n"
            "for form in ('table', 'json', 'csv', 'html'):\n"
            f"    assert run(['profile', '--from', {str(trace_file)!r}, '-o', form]) == 0\n"
            f"assert run(['profile', '--from', {str(trace_file)!r}, '--against', "
            f"{str(trace_file)!r}]) == 0\n"
            "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_a_recorded_run_has_the_same_report(self, d3: D3, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        first = d3("profile", SUM, *FAST, "--compare", "--output-file", path)
        assert first.code == 0
        drawn = d3("profile", "--from", path)
        assert drawn.out == report(read_trace(path), 160)
        again = d3("profile", "--from", path, "--json")
        assert again.out == path.read_text()
