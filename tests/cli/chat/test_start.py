"""How ``d3 chat`` begins: without a terminal, with bad input, and its list of conversations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import D3, check
from tests.terminal import Terminal
from tests.warm import Warm


def test_without_a_terminal_it_points_to_generate(d3: D3) -> None:
    result = d3("chat")
    check(result, 2, "d3 chat needs a terminal")
    assert "d3 generate" in result.err


def test_the_list(d3: D3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("D3_HOME", str(tmp_path))
    assert d3("chat", "--list").code == 0
    directory = tmp_path / "conversations"
    directory.mkdir()
    good = {"schema": 1, "role": "user", "content": "Why is\x1b[31m the sky blue?\nTell me."}
    (directory / "20260101-000000-aaaa.jsonl").write_text(json.dumps(good) + "\n")
    (directory / "20260102-000000-bbbb.jsonl").write_text("{")
    result = d3("chat", "--list")
    assert result.code == 0
    [one] = [line for line in result.out.splitlines() if "aaaa" in line]
    assert one.split("\t")[2:] == ["1", "", "Why is␛[31m the sky blue?"]
    [other] = [line for line in result.out.splitlines() if "bbbb" in line]
    assert "line 1: " in other


@pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX terminal")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-c", "--resume", "x"], "--continue and --resume cannot be combined"),
        (["-c"], "there is no conversation to continue"),
        (["--resume", "x"], 'there is no conversation "x"'),
        (["--alpha", "2"], "alpha is 2, outside (0, 1]"),
        (["--temperature", "-1"], "--temperature is -1"),
        (["--start", "5000"], "start is 5,000, beyond the model's context"),
        (["--think", "on"], "no thinking switch"),
        (["--chat-template", "/nothing"], "there is no chat template /nothing"),
        (["no-such-model"], "there is no model or directory"),
    ],
)
def test_bad_input_is_one_error(arguments: list[str], says: str, home: Path, warm: Warm) -> None:
    terminal = Terminal("chat", *arguments, home=home, columns=200, warm=warm)
    try:
        assert terminal.end() == 2
        assert says in terminal.plain
        assert "Traceback" not in terminal.plain
        assert terminal.plain.count("error: ") == 1
        # Only what depends on the model is checked after it is loaded.
        assert ("model: " in terminal.plain) == bool({"--start", "--think"} & set(arguments))
    finally:
        terminal.close()


def test_the_first_prompt_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, d3cli.cli.app, d3cli.cli.chat.start; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "huggingface_hub"} & set(shown.stdout.split())
