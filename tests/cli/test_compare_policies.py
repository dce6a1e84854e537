"""`d3 calibrate --compare-policies` from the command line."""

import json
from pathlib import Path

import pytest

from d3cli.calibrate.costs import StepCosts, costs_by_bytes
from d3cli.calibrate.policies import ComparedPolicies, PolicyAtRatio
from d3cli.cli.calibrate.policies import plot, policies_json, write_policies
from d3cli.cli.output import Output
from d3cli.depth.policies import Policy, unified
from d3cli.depth.prompt_order import schedule_from_json
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Drop
from tests.conftest import D3, check
from tests.depth.layers import equal_layers
from tests.planted import write_planted

DOCS = Path(__file__).parents[2] / "docs"
QUICK = (
    *("--documents", "32", "--units", "layer", "--order", "influence", "--dtype", "float32"),
    *("--quantization", "none", "--reply-tokens", "4", "--compare-policies"),
)


@pytest.fixture(autouse=True)
def _time_follows_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, the times of small models are noise."""

    def by_bytes(model: LoadedModel, _: Document) -> StepCosts:
        return costs_by_bytes(model.weight_bytes, 255)

    monkeypatch.setattr("d3cli.calibrate.calibrator.measure_costs", by_bytes)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short dialogues."""
    path = tmp_path_factory.mktemp("text") / "short.jsonl"
    response = "It ran through the wood to the river, and there it saw the moon. " * 2
    rows = [{"prompt": f"And fox {n}?", "response": f"Fox {n}: {response}"} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as a directory, from which any layer may be dropped."""
    return write_planted(tmp_path_factory.mktemp("planted") / "model")


def test_the_json_has_every_policy(d3: D3, planted: Path, text: Path) -> None:
    run = d3("calibrate", planted, *QUICK, "--data", text, "--target-drop", "5%", "--json")
    assert run.code == 0, run.err
    found = json.loads(run.out)["policies"]
    chosen, rows = json.loads(run.out)["schedule"], found["rows"]
    del chosen["source"]
    assert rows[0]["schedule"] == chosen
    assert rows[0]["byte_ratio"] == found["chosen_ratio"]
    assert {row["policy"] for row in rows} == set(Policy)
    for row in rows:
        assert schedule_from_json(row["schedule"]).num_layers == 6
        assert row["drop_interval"][0] <= row["drop"] <= row["drop_interval"][1]
        assert (row["replies"] is not None) == (row["asked_ratio"] == rows[0]["asked_ratio"])
    described = (DOCS / "calibration.md").read_text(encoding="utf-8")
    for name in {*found, *rows[0], *rows[0]["replies"]}:
        assert f"`{name}`" in described, name


def test_where_nothing_is_chosen_the_policies_are_still_compared(
    d3: D3, planted: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The repair of each token takes as long as a step at full depth, so nothing saves time.
    monkeypatch.setattr(
        "d3cli.calibrate.calibrator.measure_costs",
        lambda model, _: costs_by_bytes(model.weight_bytes, 1),
    )
    run = d3("calibrate", planted, *QUICK, "--data", text, "--target-drop", "5%", "--json")
    assert run.code == 3, run.err
    found = json.loads(run.out)
    assert found["schedule"] is None
    assert found["policies"]["chosen_ratio"] is None
    assert {row["policy"] for row in found["policies"]["rows"]} == set(Policy)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-o", "csv"), "-o csv has no columns for --compare-policies"),
        (("--for", "lossless"), "--compare-policies has no effect on --for lossless"),
        (("--remove",), "--compare-policies has no effect on --remove"),
    ],
)
def test_what_leaves_no_room_for_a_comparison_is_refused(
    d3: D3, arguments: tuple[str, ...], says: str
) -> None:
    check(d3("calibrate", "demo", "--compare-policies", *arguments), 2, says)


def by_hand(policy: Policy, ratio: float, drop: float) -> PolicyAtRatio:
    bounds = Drop(drop, 0.9 * drop, 1.1 * drop)
    return PolicyAtRatio(
        policy, ratio, unified(equal_layers(8), 5), ratio, ratio, bounds, 0.1, 0.9, None
    )


def five_rows() -> ComparedPolicies:
    return ComparedPolicies(
        form="float32",
        documents=16,
        tokens=1000,
        rows=[
            by_hand(Policy.D3, 1.1, 0.1),
            by_hand(Policy.STATIC, 1.2, 0.5),
            by_hand(Policy.UNIFIED, 1.3, 0.8),
            by_hand(Policy.SKIPDECODE, 1.4, 1.5),
            by_hand(Policy.EARLY_EXIT, 1.5, 30.0),
        ],
        left_out=["D³ at 2.00×: it has none near it"],
    )


def test_the_table_has_a_row_for_each_policy_and_the_notes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_policies(Output(), five_rows())
    table = capsys.readouterr().out
    assert "bytes\tpolicy\tlayers\tdrop\tagainst D³\tsame top\tits own replies" in table
    assert "1.20×\tconstant depth\t6.7\t+50.00% (+45.00 to +55.00)\t\t90.0%" in table
    assert "1.50×\tearly exit\t5.3\t×31.0 (28.0 to 34.0)" in table
    assert "compared with\tfull depth in float32" in table
    assert "text\t16 unseen documents, 1,000 tokens" in table
    assert "left out\tD³ at 2.00×: it has none near it" in table


def test_the_plot_has_a_mark_for_each_policy_and_says_what_it_leaves_out() -> None:
    picture, _, legend = plot(five_rows(), 100).rpartition("\n")
    for mark in "#ous":
        assert mark in picture
    assert "e " not in picture
    assert legend.startswith("# D³, o constant depth, u Unified Layer Skipping, s SkipDecode, e ")
    assert legend.endswith("; 1 above +200.00% are not drawn")
    assert plot(five_rows(), 40) == ""
    assert plot(ComparedPolicies(), 100) == ""
    assert [row["replies"] for row in policies_json(five_rows())["rows"]] == [None] * 5
