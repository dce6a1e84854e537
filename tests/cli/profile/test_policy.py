"""`d3 profile --policy`: a rival at the bytes that D³ would read, named in every report."""

import json
from pathlib import Path

import pytest

from d3cli.depth.policies import Policy, byte_ratio_of
from d3cli.profile.trace_file import read_trace
from tests.conftest import D3, check
from tests.traces import STORY, builtin

TOKENS = 24


@pytest.mark.parametrize("policy", [policy for policy in Policy if policy is not Policy.D3])
def test_a_rival_runs_in_place_of_d3_at_its_bytes(d3: D3, tmp_path: Path, policy: Policy) -> None:
    path = tmp_path / "run.json"
    found = d3(
        *("profile", STORY, "--policy", policy, "--max-tokens", str(TOKENS), "--dtype", "float32"),
        *("--output-file", path),
    )
    assert found.code == 0, found
    assert f"policy: {policy.in_words}, " in found.err
    trace = read_trace(path)
    assert trace.schedule["policy"] == policy
    assert {token.depth for token in trace.replies[0].tokens[1:]} != {16}
    weights = builtin().weight_bytes
    otherwise = byte_ratio_of(builtin().schedule(), weights, [TOKENS])
    ours = byte_ratio_of(trace.depth_schedule, weights, [TOKENS])
    # Layers that go for all tokens at once save bytes in steps of one layer of sixteen.
    assert abs(1 / ours - 1 / otherwise) <= 0.5 / 16
    assert ours > 1.2


def test_reports_name_the_policy(d3: D3, tmp_path: Path) -> None:
    path, page = tmp_path / "run.json", tmp_path / "run.html"
    asked = (*("profile", STORY, "--policy", "skipdecode"), "--max-tokens", "8", "--compare")
    assert d3(*asked, "--output-file", path).code == 0
    table = d3("profile", "--from", path).out
    assert "SkipDecode, linear from 16 layers at token 1" in table
    assert "at full depth and " in table
    assert "with SkipDecode" in " ".join(table.split())
    assert "with D³" not in " ".join(table.split())
    assert d3("profile", "--from", path, "--output-file", page).code == 0
    assert "SkipDecode, linear from 16 layers at token 1" in page.read_text(encoding="utf-8")


def test_the_policy_of_a_newer_d3_and_of_an_older_one(d3: D3, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert d3("profile", STORY, "--max-tokens", "4", "--output-file", path).code == 0
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["schedule"]["policy"] == "d3"
    data["schedule"]["policy"] = "deja-vu"
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps(data), encoding="utf-8")
    assert "another policy, " in d3("profile", "--from", newer).out
    del data["schedule"]["policy"]
    older = tmp_path / "older.json"
    older.write_text(json.dumps(data), encoding="utf-8")
    assert "policy" not in d3("profile", "--from", older).out
    compared = d3("profile", "--from", newer, "--against", older).out
    assert "policy: another policy | D³" in compared


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--lossless",), "--policy unified and --lossless exclude each other"),
        (("--alpha", "off"), "reads as many bytes as D³ would, and --alpha off drops nothing"),
        (("--max-tokens", "1"), "D³ drops nothing in replies of up to 1 token"),
        (("--alpha", "1"), "D³ drops nothing in replies of up to 256 tokens"),
    ],
)
def test_a_rival_without_bytes_to_match_is_refused(
    d3: D3, arguments: tuple[str, ...], says: str
) -> None:
    check(d3("profile", STORY, "--policy", "unified", *arguments), 2, says)


def test_an_unknown_policy_is_refused(d3: D3) -> None:
    check(d3("profile", STORY, "--policy", "calm"), 2, "--policy")
