"""The result of `d3 profile` in a pipe: table, JSON, CSV."""

import csv
import io
import json
import re
from pathlib import Path

from d3cli.profile.trace_file import parse_trace
from tests.cli.profile.conftest import FAST
from tests.conftest import D3
from tests.traces import (
    STORY,
    SUM,
    whole_trace,
)


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
