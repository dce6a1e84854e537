"""config.toml: below flags and the environment, and named when it is wrong."""

import json
import os
from pathlib import Path

import pytest

from tests.conftest import BUILTIN_PATH, D3, check

STORY = "Tell me a story about a fox."


class TestConfigFile:
    @pytest.fixture
    def config(self) -> Path:
        return Path(os.environ["D3_HOME"]) / "config.toml"

    def test_flag_before_environment_before_file(
        self, d3: D3, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def tokens(*arguments: str) -> int:
            result = d3("generate", STORY, "--json", *arguments)
            return int(json.loads(result.out)["stats"]["completion_tokens"])

        config.write_text("max_tokens = 3\noffline = true\n")
        assert tokens() == 3
        monkeypatch.setenv("D3_MAX_TOKENS", "4")
        assert tokens() == 4
        assert tokens("--max-tokens", "5") == 5

    def test_an_error_says_where_a_value_was_set(
        self, d3: D3, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config.write_text('alpha = "2"\ntop_k = "many"\n')
        check(d3("generate", STORY), 2, f"--top-k is set in {config}\n")
        check(d3("generate", STORY, "--top-k", "1"), 2, f"--alpha is set in {config}\n")
        assert "is set" not in d3("generate", STORY, "--top-k", "1", "--alpha", "3").err
        monkeypatch.setenv("D3_ALPHA", "4")
        monkeypatch.setenv("D3_TOP_K", "some")
        check(d3("generate", STORY), 2, "--top-k is set by the variable D3_TOP_K\n")
        check(d3("generate", STORY, "--top-k", "1"), 2, "--alpha is set by the variable D3_ALPHA\n")

    def test_an_error_of_two_settings_says_it_of_both(
        self, d3: D3, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config.write_text("core_first = 4\n")
        monkeypatch.setenv("D3_CORE_LAST", "99")
        result = d3("generate", STORY)
        check(result, 2, f"--core-first is set in {config}; --core-last is set by the variable")

    def test_help_is_never_withheld(self, d3: D3, config: Path) -> None:
        config.write_text("= broken")
        assert d3("generate", "--help").code == 0

    def test_lists_beyond_reason_are_named(self, d3: D3, config: Path) -> None:
        config.write_text(f"a = {'[' * 100_000}")
        check(d3("generate", STORY), 2, "lists in lists, too many")

    def test_a_pipe_in_its_place_is_refused(self, d3: D3, config: Path) -> None:
        os.mkfifo(config)
        check(d3("generate", STORY), 2, "is not a regular file")

    def test_the_configured_model_and_own_aliases(self, d3: D3, config: Path) -> None:
        config.write_text(f'model = "mine"\n[aliases]\nmine = "{BUILTIN_PATH}"\n')
        result = d3("generate", STORY, "--max-tokens", "2")
        assert result.code == 0
        assert "model: mine" in result.err

    def test_an_alias_may_stand_for_the_built_in_model(self, d3: D3, config: Path) -> None:
        config.write_text('model = "mine"\n[aliases]\nmine = "demo"\n')
        result = d3("generate", STORY, "--max-tokens", "2")
        assert result.code == 0, result.err
        assert d3("models").out.splitlines()[0].split("\t")[:3] == [
            "*",
            "demo, mine",
            "the built-in model",
        ]
        assert d3("models", "default", "mine").code == 0

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("temprature = 1", 'unknown setting "temprature"'),
            ('temperature = "hot"', "--temperature"),
            ("= broken", "cannot be read"),
            ("aliases = 3", "[aliases]"),
            ("a = " + "[" * 5000, "cannot be read"),
        ],
    )
    def test_a_wrong_file_is_named(self, d3: D3, config: Path, text: str, message: str) -> None:
        config.write_text(text)
        check(d3("generate", STORY), 2, message)
