"""`d3 profile` in pipes, in terminals, with files and when interrupted."""

import csv
import io
import itertools
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.cells import cell_len
from rich.console import Console

from d3cli.base.atomic_files import replace_file
from d3cli.base.inert import quoted
from d3cli.cli.format import cut
from d3cli.cli.output import json_line
from d3cli.cli.profile.against import against_json
from d3cli.cli.profile.live import ProfileView
from d3cli.cli.profile.tables import report
from d3cli.cli.progress import Progress
from d3cli.profile.profiler import Profiler
from d3cli.profile.run import Run
from d3cli.profile.summary import with_figures
from d3cli.profile.trace import Trace
from d3cli.profile.trace_file import parse_trace, read_trace
from tests.conftest import D3, check
from tests.forks import Forks
from tests.processes import d3_process
from tests.terminal import Terminal
from tests.traces import (
    FEW_ROUNDS,
    HOSTILE,
    STORY,
    SUM,
    as_schema_1,
    hostile_trace,
    profile,
    prompt,
    whole_trace,
)

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FAST = ("--max-tokens", "12", "--threads", "1")


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in FEW_ROUNDS.items():
        monkeypatch.setattr(f"d3cli.profile.profiler.{name}", number)


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json_line(with_figures(whole_trace())))
    return path


class TestPipe:
    def test_only_the_result_goes_to_stdout(self, d3: D3) -> None:
        result = d3("profile", STORY, *FAST)
        assert result.code == 0
        assert "\x1b" not in result.out + result.err
        assert "model: the built-in model" in result.err
        lines = result.out.splitlines()
        columns = ["step", "token", "layers", "ms", "logprob", "entropy", "active"]
        assert lines[0].split() == columns
        assert [line.split()[0] for line in lines[2:14]] == [str(step) for step in range(12)]
        for word in ("TTFT", "tok/s", "TPOT", "peak memory", "by layers", "ships with this model"):
            assert word in result.out

    def test_json_is_a_trace(self, d3: D3) -> None:
        result = d3(
            "profile", SUM, *FAST, "-o", "json", "--compare", "--needed", "--layers",
            "--temp", "0.7", "--seed", "3", "--alpha", "0.9",
        )  # fmt: skip
        assert result.out.count("\n") == 1
        trace = parse_trace(result.out.encode(), "stdout")
        (reply,) = trace.replies
        assert reply.prompt == SUM
        assert reply.seed == 3
        assert trace.sampling["temperature"] == 0.7
        assert trace.schedule["source"] == "flags"
        assert trace.max_tokens == 12
        assert reply.clock is not None and reply.layers is not None
        assert all(token.full_token_id is not None for token in reply.tokens)
        assert all(token.needed_depth is not None for token in reply.tokens[1:])
        same = d3(
            "generate", SUM, "--json", "--max-tokens", "12", "--temp", "0.7", "--seed", "3",
            "--alpha", "0.9", "--threads", "1",
        )  # fmt: skip
        tokens = json.loads(same.out)["tokens"]
        assert [token["token_id"] for token in tokens] == [t.token_id for t in reply.tokens]
        assert [token["depth"] for token in tokens] == [t.depth for t in reply.tokens]

    def test_csv_round_trips(self, d3: D3, trace_file: Path) -> None:
        result = d3("profile", "--from", trace_file, "-o", "csv")
        rows = list(csv.DictReader(io.StringIO(result.out)))
        tokens = [token for reply in whole_trace().replies for token in reply.tokens]
        assert len(rows) == len(tokens)
        for row, token in zip(rows, tokens, strict=True):
            assert json.loads(row["text"]) == token.text
            assert float(row["depth"]) == token.depth
            assert (float(row["ms"]) if row["ms"] else None) == token.ms
            assert float(row["kl"]) == token.kl
            assert int(row["full_token_id"]) == token.full_token_id

    def test_several_prompts_have_totals(self, d3: D3, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        rows = [
            {"prompt": SUM},
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hi."},
                    {"role": "assistant", "content": "Hello."},
                    {"role": "user", "content": "What is 3 + 4?"},
                ]
            },
        ]
        path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
        result = d3("profile", "--input", path, *FAST, "--system", "Go.", "--json")
        data = json.loads(result.out)
        assert [reply["prompt"] for reply in data["replies"]] == [SUM, "What is 3 + 4?"]
        tokens = [reply["stats"]["tokens"] for reply in data["replies"]]
        assert data["totals"]["tokens"] == sum(tokens)
        assert data["totals"]["replies"] == 2
        assert data["replies"][1]["prompt_tokens"] > data["replies"][0]["prompt_tokens"]
        table = d3("profile", "--input", "-", *FAST, stdin=path.read_bytes())
        assert "2: What is 3 + 4?" in table.out
        assert "The 2 replies have" in table.out

    def test_repeats_and_a_prompt_from_a_file(self, d3: D3, tmp_path: Path) -> None:
        path = tmp_path / "p.txt"
        path.write_text(SUM)
        result = d3("profile", "--prompt-file", path, *FAST, "--repeat", "2")
        assert result.code == 0
        assert re.search(r"[\d.]+ ± [\d.]+ tok/s", result.out)
        assert "2, after one warm-up" in result.out


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
            check(result, 1, "directory" if path == tmp_path else "cannot be written")
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
        check(d3("profile", "--from", trace_file, "--output-file", path), 1, "is read-only")

    def test_odd_places(self, d3: D3, tmp_path: Path, trace_file: Path) -> None:
        loop, dangling = tmp_path / "loop.json", tmp_path / "dangling.json"
        loop.symlink_to(loop)
        dangling.symlink_to(tmp_path / "none" / "x.json")
        for path in (loop, dangling):
            result = d3("profile", "--from", trace_file, "--output-file", path)
            check(result, 1, "cannot be written")
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


class TestAgainst:
    def test_two_runs_are_compared(self, d3: D3, tmp_path: Path) -> None:
        paths = [tmp_path / "a.json", tmp_path / "b.json"]
        for path, alpha in zip(paths, ("off", "0.9"), strict=True):
            d3("profile", STORY, "--max-tokens", "30", "--alpha", alpha, "--output-file", path)
        result = d3("profile", "--from", paths[0], "--against", paths[1])
        assert result.code == 0
        assert "first difference" in result.out
        assert "depth: full, all 16 layers | alpha 0.9" in " ".join(result.out.split())
        data = json.loads(
            d3("profile", "--from", paths[0], "--against", paths[1], "-o", "json").out
        )
        a, b = (read_trace(path) for path in paths)
        assert data == against_json(a, b)
        ids = [[token.token_id for token in trace.replies[0].tokens] for trace in (a, b)]
        step = next((at for at, pair in enumerate(zip(*ids, strict=False)) if len(set(pair)) > 1))
        assert data["replies"][0]["step"] == step
        assert data["replies"][0]["texts"] == [t.replies[0].tokens[step].text for t in (a, b)]
        depth = data["measures"]["mean depth"]
        assert depth["from"] == 16
        assert depth["ratio"] == pytest.approx(depth["against"] / 16)

    def test_a_run_equals_itself(self, d3: D3, trace_file: Path) -> None:
        data = json.loads(
            d3("profile", "--from", trace_file, "--against", trace_file, "--json").out
        )
        assert data["differs"] == []
        assert [reply["step"] for reply in data["replies"]] == [None, None]
        assert {one["ratio"] for one in data["measures"].values()} == {1.0}

    def test_traces_of_both_schemas_are_compared(
        self, d3: D3, tmp_path: Path, trace_file: Path
    ) -> None:
        old = tmp_path / "old.json"
        old.write_text(json_line(as_schema_1(with_figures(whole_trace()))))
        for one, other in ((old, trace_file), (trace_file, old), (old, old)):
            data = json.loads(d3("profile", "--from", one, "--against", other, "--json").out)
            assert data["differs"] == []
            assert {measure["ratio"] for measure in data["measures"].values()} == {1.0}
        new = d3("profile", "--from", trace_file, "-o", "json").out
        assert d3("profile", "--from", old, "-o", "json").out == new

    def test_different_settings_are_named(self, d3: D3, tmp_path: Path) -> None:
        paths = [tmp_path / "a.json", tmp_path / "b.json"]
        asked = (("--seed", "1"), ("--seed", "2", "--system", "Go.", "--stop", "fox"))
        for path, extra in zip(paths, asked, strict=True):
            d3("profile", SUM, "--temp", "1", *extra, *FAST, "--output-file", path)
        result = d3("profile", "--from", paths[0], "--against", paths[1], "--json")
        differs = json.loads(result.out)["differs"]
        assert [line.partition(":")[0] for line in differs] == ["sampling", "options", "prompts"]
        assert "seed 1" in differs[0] and "seed 2" in differs[0]
        assert 'stop at "fox"' in differs[1]

    def test_the_header_has_seed_and_fingerprint(self, d3: D3) -> None:
        result = d3("profile", SUM, "--temp", "1", "--seed", "41", *FAST)
        assert "seed 41" in result.out
        assert re.search(r"fingerprint +[0-9a-f]{64}", result.out)


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
            "newer": whole.replace('"schema": 2', '"schema": 9', 1),
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


class TestInterruption:
    """A real signal at a random moment, chosen by a seed."""

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_leaves_a_valid_trace(
        self, d3: D3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, number: int
    ) -> None:
        moment = random.Random(seed).randrange(1, 60)
        path, seen = tmp_path / "run.json", itertools.count(1)
        tokens = Run.__iter__

        def watched(run: Run) -> Iterator[object]:
            for chunk in tokens(run):
                if next(seen) == moment:
                    os.kill(os.getpid(), number)
                yield chunk

        monkeypatch.setattr(Run, "__iter__", watched)
        result = d3("profile", STORY, *FAST, "--repeat", "4", "--output-file", path)
        assert result.code == 128 + number
        assert result.out == ""
        trace = read_trace(path)
        assert trace.interrupted
        (reply,) = trace.replies
        # Twelve tokens of warm-up, then twelve per repeat. The first repeat with tokens is shown.
        shown = moment if moment <= 12 else min(12, moment - 12)
        assert len(reply.tokens) == shown
        assert len(reply.repeats) == max(1, moment // 12 - 1)

    @pytest.mark.parametrize("step", ["full depth's values", "needed depth", "full depth's time"])
    def test_a_signal_during_the_comparison_keeps_the_reply(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        steps = Profiler.examine

        def watched(profiler: Profiler) -> Iterator[tuple[str, float]]:
            for what, share in steps(profiler):
                if what == step:
                    os.kill(os.getpid(), signal.SIGINT)
                yield what, share

        monkeypatch.setattr(Profiler, "examine", watched)
        result = d3("profile", STORY, *FAST, "--compare", "--needed", "--json")
        assert result.code == 130
        trace = parse_trace(result.out.encode(), "stdout")
        assert trace.interrupted
        assert len(trace.replies[0].tokens) == 12
        assert trace.replies[0].clock is None

    def test_a_signal_waits_until_the_result_is_written(
        self, d3: D3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(path: Path, text: str) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            replace_file(path, text)

        monkeypatch.setattr("d3cli.cli.profile.destination.replace_file", killed)
        path = tmp_path / "run.json"
        assert d3("profile", SUM, *FAST, "--output-file", path).code == 130
        assert not read_trace(path).interrupted

    def test_many_signals_end_a_hanging_process(self, tmp_path: Path) -> None:
        code = (
            "import os, signal, time\n"
            "from d3cli.cli import signals\n"
            "signals.stop_in_order(); signals.stop_once()\n"
            "try:\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "except signals.Stopped:\n"
            "    for _ in range(9): os.kill(os.getpid(), signal.SIGTERM)\n"
            "time.sleep(60)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
        assert done.returncode == 143

    @pytest.mark.slow
    def test_a_signal_to_another_process(self, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        process = d3_process(
            "profile", STORY, "--repeat", "1000", "--core-first", "1", "--threads", "1",
            "--output-file", str(path),
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if b"has no effect" in line:  # said when the model is loaded
                break

        def computed() -> float:
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
            return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

        began = computed()
        while computed() < began + 4:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        trace = read_trace(path)
        assert trace.interrupted
        assert trace.replies[0].tokens


class Shown(NamedTuple):
    """The bytes written to a terminal, and the exit code."""

    code: int
    raw: str

    @property
    def plain(self) -> str:
        return " ".join(re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.raw).split())

    @property
    def frames(self) -> list[str]:
        """Each drawing of the live screen."""
        drawn = self.raw.split("\x1b[?1049h")[1].split("\x1b[?1049l")[0]
        frames = [frame for frame in drawn.split("\x1b[H") if "step" in frame]
        return [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", frame) for frame in frames]


@pytest.fixture
def shown(forks: Forks, tmp_path: Path) -> Callable[..., Shown]:
    """Runs `d3 profile` in a terminal of a given size; `interrupt` it after that many bytes."""

    def run(
        *arguments: str | Path, columns: int = 100, rows: int = 30, interrupt: int = 0, **env: str
    ) -> Shown:
        env = {"COLUMNS": str(columns), "LINES": str(rows), "TERM": "xterm-256color"} | env
        env["D3_HOME"] = str(tmp_path / "home")
        after = {"signal": signal.SIGINT, "after_out": interrupt} if interrupt else {}
        ended = forks.run("profile", *arguments, "--threads", "1", terminal=True, env=env, **after)
        return Shown(ended.code, ended.err)

    return run


class TestTerminal:
    def test_the_live_table_and_then_the_result(self, shown: Callable[..., Shown]) -> None:
        run = shown(STORY)
        assert run.code == 0
        for frame in run.frames:
            for word in ("token", "layers", "tok/s", "logprob", "entropy", "memory", "processor"):
                assert word in frame
        assert "TTFT" in run.frames[-1] and "█" in run.frames[-1] and "▄" in run.frames[-1]
        assert "ships with this model" in run.plain
        assert run.raw.index("\x1b[?1049l") < run.raw.index("summary")  # after the live screen
        assert "\x1b[?25h" in run.raw  # the cursor is back

    @pytest.mark.parametrize(("columns", "rows"), [(40, 12), (20, 8), (300, 90)])
    def test_any_size(self, shown: Callable[..., Shown], columns: int, rows: int) -> None:
        run = shown(SUM, columns=columns, rows=rows)
        assert run.code == 0
        assert run.frames
        for frame in run.frames:
            lines = frame.rstrip("\r\n").split("\n")
            assert len(lines) <= rows, frame
            assert max(cell_len(line.rstrip("\r")) for line in lines) <= columns, frame
        assert "summary" in run.plain or columns == 20

    def test_a_dumb_terminal_gets_the_result(self, shown: Callable[..., Shown]) -> None:
        run = shown(SUM, TERM="dumb")
        assert run.code == 0
        assert "\x1b" not in run.raw
        assert "tok/s" in run.plain

    def test_no_color_is_honoured(self, shown: Callable[..., Shown]) -> None:
        run = shown(SUM, NO_COLOR="1")
        assert run.code == 0
        codes = {code for one in re.findall(r"\x1b\[([\d;]*)m", run.raw) for code in one.split(";")}
        assert not {code for code in codes if code[:1] in "349" and len(code) > 1}, codes

    def test_html_needs_a_file(self, shown: Callable[..., Shown]) -> None:
        run = shown(SUM, "-o", "html")
        assert run.code == 2
        assert "a terminal cannot show HTML" in run.plain

    def test_ctrl_c_restores_the_screen(self, shown: Callable[..., Shown], tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        several_frames = 20_000
        run = shown(STORY, "--repeat", "100", "--output-file", path, interrupt=several_frames)
        assert run.code == 130
        assert "\x1b[?1049l" in run.raw
        assert read_trace(path).interrupted
        assert "interrupted" in run.plain

    def test_time_suspended_is_left_out(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        stops, left_out = [2.5, 0.5], list[float]()

        @contextmanager
        def live(_: Progress) -> Iterator[tuple[None, list[float]]]:
            yield None, stops

        monkeypatch.setattr(Progress, "live", live)
        monkeypatch.setattr(Run, "leave_out", lambda _, seconds: left_out.append(seconds))
        assert d3("profile", SUM, *FAST).code == 0
        assert sorted(left_out) == [0.5, 2.5]


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: str | Path, columns: int = 80, rows: int = 24) -> Terminal:
        words = ["-m", "d3cli", "profile", "--threads", "1", *arguments]
        started.append(Terminal(*words, home=tmp_path / "home", columns=columns, rows=rows))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


@pytest.mark.slow
class TestInteraction:
    """Keys and window changes while the live screen is shown."""

    def test_the_screen_shows_the_newest_tokens(self, terminals: Callable[..., Terminal]) -> None:
        terminal = terminals(STORY, columns=100, rows=30)
        terminal.wait(lambda: re.search(r"^ +\d\d  \"", "\n".join(terminal.screen.display), re.M))
        assert terminal.end(60) == 0
        assert "ships with this model" in terminal.plain

    def test_suspending_restores_the_screen(self, tmp_path: Path) -> None:
        shell = Terminal(
            "--norc", "-i", home=tmp_path, program="/bin/bash", PS1="sh> ", columns=90, rows=24
        )
        try:
            shell.line(f"{sys.executable} -m d3cli profile --threads 1 '{STORY}' --repeat 4")
            shell.wait("repeat 1 of 4")
            shell.send("\x1a")
            shell.wait("Stopped")
            assert shell.raw.rindex("\x1b[?1049l") > shell.raw.rindex("\x1b[?1049h")
            shell.read(0.5)
            shell.line("echo still here; fg")
            shell.wait("summary", 60)
            assert shell.raw.count("\x1b[?1049h") == shell.raw.count("\x1b[?1049l") == 2
        finally:
            shell.close()

    def test_resized_while_it_runs(self, terminals: Callable[..., Terminal]) -> None:
        terminal = terminals(STORY, "--repeat", "3", columns=100, rows=30)
        terminal.wait("tok/s")
        terminal.resize(50, 12)
        terminal.read(1)
        terminal.resize(120, 40)
        assert terminal.end(60) == 0


class TestView:
    @pytest.mark.parametrize("width", [20, 40, 80, 120])
    def test_wide_and_hostile_tokens_stay_on_their_lines(self, width: int) -> None:
        profiler = profile(max_tokens=len(HOSTILE) + 2)[0]
        model, schedule = profiler.model, profiler.options.schedule
        console = Console(
            file=io.StringIO(), force_terminal=True, width=width, height=30, no_color=True
        )
        view = ProfileView(None, model, schedule, None, 1, 1)
        run = next(iter(profiler.runs(prompt(STORY))))
        view.begin(run, 1)
        for at, _ in enumerate(run):
            run.reply.pieces[-1] = HOSTILE[at % len(HOSTILE)] * (1 + at % 3)
            view.add(run)
        lines = console.render_lines(view._render(console), pad=False)
        for line in lines:
            text = "".join(segment.text for segment in line)
            assert cell_len(text) <= width
            assert not CONTROL.search(text)
        assert len(lines) <= 30

    def test_tokens_are_quoted_and_cut(self) -> None:
        assert quoted(" the") == '" the"'
        assert quoted("\n") == '"\\n"'
        assert quoted("\x1b[31m") == '"␛[31m"'
        assert quoted("e\u0301") == '"e\u0301"'
        assert cut(quoted("日本語" * 20), 10) == '"日本語…"'
        assert cell_len(cut(quoted("日" * 99), 11)) <= 11


def test_a_report_fits_its_width() -> None:
    trace: Trace = whole_trace()
    for width in (20, 40, 80, 200):
        lines = report(trace, width).splitlines()
        assert max(cell_len(line) for line in lines) <= width
