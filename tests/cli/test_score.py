"""`d3 calibrate score`: a task at full depth and at a schedule that is given, without a search."""

import json
from pathlib import Path

import pytest

from d3cli.decode.session import Engine
from d3cli.model.load import load_model
from tests.conftest import D3, check
from tests.copies import stranger

QUESTIONS = ("What is 27 + 45?", "Tell me a story about a fox.", "What is 2 + 3?")
OPTIONS = ("--dtype", "float32", "--threads", "1", "--max-tokens", "48")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Questions, of which full depth's replies of 48 tokens are the right answers."""
    model = load_model(dtype="float32", device="cpu", threads=1)
    rows = []
    for prompt in QUESTIONS:
        reply = Engine(model).stream(prompt, schedule=model.schedule("off"), max_tokens=48)
        for _ in reply:
            pass
        rows.append({"prompt": prompt, "answers": [reply.text]})
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_explicit_schedule_is_scored(d3: D3, task: Path) -> None:
    given = ("calibrate", "score", "--task", task, *OPTIONS, "--alpha", "0.5", "--start", "0")
    result = d3(*given, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["schedule"]["alpha"] == 0.5
    assert found["task"]["questions"] == 3
    scored = found["task"]["result"]
    assert (scored["full"]["right"], scored["full"]["questions"]) == (3, 3)
    assert scored["schedule"]["right"] < 3  # nine of sixteen layers are not enough
    assert scored["only_full"] == 3 - scored["schedule"]["right"]
    shown = d3(*given).out
    assert "3 of 3 right" in shown
    assert "constant from token 1 on, 9 of 16 layers" in shown


def test_a_model_that_is_not_calibrated_has_nothing_to_compare(
    d3: D3, task: Path, tmp_path: Path
) -> None:
    model = stranger(tmp_path / "model")
    result = d3("calibrate", "score", model, "--task", task, *OPTIONS)
    check(result, 2, "there is nothing to compare: replies of 48 tokens are at full depth")
    assert "--alpha 0.99" in result.err
    late = ("--alpha", "0.9", "--start", "60")
    result = d3("calibrate", "score", model, "--task", task, *OPTIONS, *late)
    check(result, 2, "there is nothing to compare")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--task is missing"),
        (["--task", "nothing.jsonl"], "there is no task file nothing.jsonl"),
        (["--task", "x", "--alpha", "off"], "--alpha off is full depth"),
        (["--task", "x", "-o", "csv"], "cannot be shown as csv"),
        (["--task", "x", "--max-time", "soon"], '--max-time is "soon"'),
    ],
)
def test_what_cannot_be_scored(options: list[str], says: str, d3: D3) -> None:
    check(d3("calibrate", "score", *options), 2, says)
