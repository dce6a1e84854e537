"""Tab completes the names of models, in the form that each shell reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d3cli.base.settings import config_file
from d3cli.cli.completion import complete_model
from tests.conftest import hub_repository


def test_aliases_the_built_in_model_and_the_cache() -> None:
    with hub_repository("someone/llama-fox"):
        assert complete_model("someone/") == ["someone/llama-fox"]
    assert "llama-3.2-1b" in complete_model("llama")
    assert complete_model("dem") == ["demo"]
    assert complete_model("nothing-like-this") == []


def test_directories_and_gguf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "config.json").write_text("{}")
    (tmp_path / "foxes" / "inner").mkdir(parents=True)
    (tmp_path / "fo.txt").write_text("")
    (tmp_path / "fog.gguf").write_text("GGUF")
    monkeypatch.chdir(tmp_path)
    assert complete_model("fo") == ["fog.gguf", "fox"]  # a bare word: models only
    # A path: other directories as well.
    assert complete_model("./fo") == ["./fog.gguf", "./fox", "./foxes/"]
    assert complete_model(f"{tmp_path}/foxes/") == [f"{tmp_path}/foxes/inner/"]
    assert complete_model("./none/x") == []


def test_a_damaged_config_file_offers_less_and_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text("= broken")
    assert complete_model("llama") == []
    assert capsys.readouterr() == ("", "")


def complete(shell: str, words: str) -> str:
    """What the shell is told when Tab is pressed after these words."""
    environment = os.environ | {
        "_D3_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv = ['d3']; import d3cli.__main__ as m; m.main()",
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert not child.stderr
    return child.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_answered(shell: str) -> None:
    found = complete(shell, "d3 generate llama-3.2")
    assert "llama-3.2-1b" in found
    assert "llama-3.2-3b" in found
    assert "qwen" not in found


def test_a_command_with_subcommands_completes_both() -> None:
    assert {"show", "remove", "demo"} <= set(complete("bash", "d3 calibrate ").split())
    assert complete("bash", "d3 calibrate sh").split() == ["show"]
    assert complete("bash", "d3 calibrate show dem").split() == ["demo"]
    assert "--target-drop" in complete("bash", "d3 calibrate --targ")
