"""Recorded runs: `d3 profile --from` and `--against`."""

import json
import re
from pathlib import Path

import pytest

from d3cli.cli.output import json_line
from d3cli.cli.profile.against import against_json
from d3cli.profile.summary import with_figures
from d3cli.profile.trace_file import read_trace
from tests.cli.profile.conftest import FAST
from tests.conftest import D3
from tests.traces import (
    STORY,
    SUM,
    as_schema_1,
    whole_trace,
)


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
