"""The four commands run a GGUF file by its path, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cli.chat.at_terminal import at_prompt, turn
from tests.real.conftest import the_rest
from tests.terminal import Terminal

pytestmark = the_rest

QUESTION = "What is the capital of France?"


def d3(home: Path, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("D3_")}
    return subprocess.run(
        [sys.executable, "-m", "d3cli", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment | {"D3_HOME": str(home), "D3_KERNELS": "torch", "OMP_NUM_THREADS": "1"},
        timeout=900,
        check=False,
    )


def parsed(run: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert run.returncode == code, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_generate_answers(real_path: Path, tmp_path: Path) -> None:
    run = d3(tmp_path, "generate", real_path, QUESTION)
    assert run.returncode == 0, run.stderr
    assert "Paris" in run.stdout
    assert "\x1b" not in run.stdout
    assert real_path.name in run.stderr


def test_generate_without_a_calibration_runs_at_full_depth(real_path: Path, tmp_path: Path) -> None:
    found = parsed(d3(tmp_path, "generate", real_path, QUESTION, "--json"))
    assert "Paris" in found["text"]
    assert found["finish_reason"] == "stop"
    assert found["schedule"]["num_layers"] == 30
    assert found["stats"]["byte_ratio"] == 1


def test_generate_reads_a_pipe(real_path: Path, tmp_path: Path) -> None:
    text = "The meeting is on Tuesday at nine o'clock in the blue room."
    found = parsed(d3(tmp_path, "generate", real_path, "On which day is it?", "--json", stdin=text))
    assert "Tuesday" in found["text"]


def test_profile_compares_with_full_depth(real_path: Path, tmp_path: Path) -> None:
    run = d3(
        *(tmp_path, "profile", real_path, QUESTION, "--alpha", "0.99", "--start", "4"),
        *("--max-tokens", "24", "--compare", "--needed", "--json"),
    )
    trace = parsed(run)
    tokens = trace["replies"][0]["tokens"]
    assert trace["compared"]
    assert tokens[0]["depth"] == 30
    assert tokens[-1]["depth"] < 30
    assert all(isinstance(token["full_token_id"], int) for token in tokens[1:])


def test_calibrate_reports_what_it_finds(real_path: Path, tmp_path: Path) -> None:
    """The least text and the quickest search, in one form of the weights.

    On this model it may find something or nothing.
    """
    data = tmp_path / "sums.jsonl"
    rows = [
        {"prompt": f"What is {number} plus 17?", "response": sum_in_steps(number)}
        for number in range(20, 52)
    ]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run = d3(
        *(tmp_path, "calibrate", real_path, "--data", data, "--units", "layer"),
        *("--order", "influence", "--target-drop", "5%", "--quantization", "none", "--json"),
    )
    assert run.returncode in (0, 3), run.stderr
    found = parsed(run, run.returncode)
    assert (found["schedule"] is None) == (run.returncode == 3)
    assert (found["stored"] is None) == (run.returncode == 3)
    assert len(found["orders"]["layer"]) >= 1
    assert found["frontier"]


def sum_in_steps(number: int) -> str:
    total = number + 17
    return (
        f"{number} plus 17 is {total}. Take {number} and add ten, which makes {number + 10}; then "
        f"add seven, which makes {total}. So the answer is {total}."
    )


def test_chat_holds_a_conversation_of_three_turns(real_path: Path, tmp_path: Path) -> None:
    terminal = Terminal(
        *("-m", "d3cli", "chat", real_path, "--max-tokens", "40"),
        home=tmp_path,
        columns=100,
    )
    try:
        at_prompt(terminal)
        for line in ("My dog is called Rex.", QUESTION, "And of Italy?"):
            turn(terminal, line)
        assert "Paris" in terminal.plain
        assert "Rome" in terminal.plain
        terminal.line("/exit")
        assert terminal.end() == 0
    finally:
        terminal.close()
