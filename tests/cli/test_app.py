"""Help, tracebacks, and what is imported."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from d3cli.cli import signals
from tests.conftest import BUILTIN_PATH, D3, check
from tests.forks import Forks
from tests.processes import d3_process

STORY = "Tell me a story about a fox."


class TestDebug:
    def test_a_traceback_comes_with_debug_only(self, d3: D3) -> None:
        assert "Traceback" not in d3("generate", "--alpha", "7", "Hi.").err
        assert "Traceback" in d3("generate", "--alpha", "7", "Hi.", "--debug").err

    @pytest.mark.parametrize(
        "command", ["", "chat", "generate", "profile", "calibrate", "doctor", "models"]
    )
    def test_help_asks_for_no_value_where_none_follows(self, d3: D3, command: str) -> None:
        shown = d3(*command.split(), "-h").out
        assert "--help" in shown and " -h " in shown
        assert "bool" not in shown

    def test_no_command_shows_the_help(self, d3: D3) -> None:
        result = d3()
        assert result.code == 0
        assert "generate" in result.out
        assert result.err == ""

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_stderr_that_cannot_be_written_does_not_cost_the_reply(self, forks: Forks) -> None:
        ended = forks.run("generate", STORY, "--max-tokens", "5", err="/dev/full")
        assert ended.code == 0
        assert ended.out.strip()

    def test_what_transformers_logs_of_a_config_is_not_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")  # for other programs
        model = tmp_path / "m"
        shutil.copytree(BUILTIN_PATH, model)
        config = json.loads((model / "config.json").read_text())
        config["use_return_dict"] = "\x1b]0;OWNED\x07\u202e"  # it cannot be set, says transformers
        (model / "config.json").write_text(json.dumps(config))
        process = d3_process("generate", str(model), "Hi.", "--max-tokens", "2")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert err.count(b"\n") == 3  # the model, the error, the hint
        assert b"OWNED" not in err

    def test_a_terminal_that_goes_is_a_hangup_whatever_fails_first(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def gone(*_: object, **__: object) -> None:
            monkeypatch.setattr(signals, "_arrived", [signal.SIGHUP])
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("d3cli.cli.request.announce", gone)
        result = d3("generate", "Hi.")
        assert result.code == 129
        assert not result.err

    def test_the_traceback_is_inert(self, d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ValueError("oh\x1b[31m no")

        monkeypatch.setattr("d3cli.cli.loading.load_announced", broken)
        result = d3("generate", "Hi.", "--debug")
        assert "Traceback" in result.err
        assert "\x1b" not in result.err

    def test_a_defect_of_ours_is_one_line_too(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("oh\x1b[31m no")

        monkeypatch.setattr("d3cli.cli.loading.load_announced", broken)
        result = d3("generate", "Hi.")
        check(result, 1, "internal error: ZeroDivisionError: oh␛[31m no")
        assert "--debug" in result.err


class TestImports:
    def imported(self, *arguments: str) -> set[str]:
        code = (
            "import sys\nfrom d3cli.cli.app import run\n"
            f"run({list(arguments)!r})\nprint(*sys.modules, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return {name.partition(".")[0] for name in done.stderr.split()}

    @pytest.mark.parametrize(
        "arguments", [["--help"], ["generate", "--help"], ["--version"], ["generate", "lama-3-8b"]]
    )
    def test_help_and_early_errors_do_not_import_torch(self, arguments: list[str]) -> None:
        heavy = {"torch", "transformers", "tokenizers", "numpy", "huggingface_hub", "jinja2"}
        assert not heavy & self.imported(*arguments)

    def test_importing_the_package_does_not_import_torch(self) -> None:
        code = "import sys, d3cli; assert 'torch' not in sys.modules; d3cli.Engine"
        subprocess.run([sys.executable, "-c", code], check=True)
