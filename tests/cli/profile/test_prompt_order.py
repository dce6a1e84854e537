"""``d3 profile --alpha`` with a model that is not calibrated: each prompt decides the order."""

import json
from pathlib import Path

import pytest

from tests.conftest import D3
from tests.planted import write_planted

PROMPT = "Tell me about the fox in the wood by the river, who saw the moon and the sun."


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as a directory, which is not calibrated."""
    return write_planted(tmp_path_factory.mktemp("planted") / "model")


@pytest.mark.parametrize("units", ["layer", "sublayer"])
def test_the_order_is_that_of_a_reply(d3: D3, planted: Path, units: str) -> None:
    options = ("--alpha", "0.9", "--units", units, "--max-tokens", "12", "--dtype", "float32")
    made = d3("profile", planted, PROMPT, *options, "--compare", "--needed", "--layers", "--json")
    assert made.code == 0, made
    trace = json.loads(made.out)
    [reply] = trace["replies"]
    assert (trace["schedule"]["source"], trace["schedule"]["order"]) == ("prompt", "prompt")
    ran = json.loads(d3("generate", planted, PROMPT, *options, "--json").out)
    assert reply["skip_order"] == ran["schedule"]["skip_order"]
    assert [token["token_id"] for token in reply["tokens"]] == [
        token["token_id"] for token in ran["tokens"]
    ]
    assert [token["depth"] for token in reply["tokens"]] == [
        token["depth"] for token in ran["tokens"]
    ]


def test_prompts_of_one_run_have_their_own_orders(d3: D3, planted: Path, tmp_path: Path) -> None:
    rows, recorded = tmp_path / "rows.jsonl", tmp_path / "run.json"
    texts = (PROMPT, "27 45 81 99 12 63 72 54 36 18 9 3 1 0 5 7 " * 2, "Hi")
    rows.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    options = ("--alpha", "0.9", "--max-tokens", "8", "--dtype", "float32", "--repeat", "2")
    made = d3("profile", planted, "--input", rows, *options, "--output-file", recorded)
    assert made.code == 0, made
    replies = json.loads(recorded.read_text())["replies"]
    assert all(len(reply["repeats"]) == 2 for reply in replies)
    assert len(replies[0]["skip_order"]) == len(replies[1]["skip_order"]) > 0
    for form in ("table", "csv", "html", "json"):
        shown = d3("profile", "--from", recorded, "-o", form)
        assert shown.code == 0, shown
    assert d3("profile", "--from", recorded, "--against", recorded).code == 0
