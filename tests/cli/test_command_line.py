"""A command line becomes one settings object; config.toml and subcommands have their place."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

import d3cli
from d3cli.base.errors import Setting
from d3cli.base.settings import config_file
from d3cli.cli.app import app
from d3cli.cli.command_line import CommandSettings, command, command_group
from d3cli.cli.output import flag
from tests.conftest import D3, check


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A group of options."""

    alpha: Annotated[str, typer.Option(envvar="D3_ALPHA")] = "auto"
    stop: Annotated[list[str] | None, typer.Option()] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer(CommandSettings):
    """The settings of a command."""

    model: Annotated[str | None, typer.Argument()] = None
    inner: Inner
    loud: Annotated[bool, typer.Option("--loud")] = False


def parse(*words: str, defaults: dict[str, str] | None = None) -> Outer:
    """What a command is given for these words."""
    found: list[Outer] = []

    def run(settings: Outer) -> int:
        """Do it."""
        found.append(settings)
        return 0

    app = typer.Typer(context_settings={"default_map": defaults or {}})
    app.command()(command(Outer)(run))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return found[0]


def test_groups_of_options_are_filled() -> None:
    assert parse() == Outer(inner=Inner())
    settings = parse("m", "--alpha", "0.9", "--stop", "a", "--stop", "b", "--loud")
    assert settings.inner == Inner(alpha="0.9", stop=["a", "b"])
    assert (settings.model, settings.loud) == ("m", True)


def test_typed_holds_what_the_command_line_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D3_ALPHA", "off")
    assert parse("m", "--loud").typed == {"model": "MODEL", "loud": "--loud"}


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parse(defaults={"alpha": "0.5"}).inner.alpha == "0.5"
    monkeypatch.setenv("D3_ALPHA", "0.6")
    assert parse(defaults={"alpha": "0.5"}).inner.alpha == "0.6"
    assert parse("--alpha", "0.7", defaults={"alpha": "0.5"}).inner.alpha == "0.7"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "main: None None"),
        (["fox"], "main: fox None"),
        (["--name", "x", "fox"], "main: fox x"),
        (["fox", "--name", "x"], "main: fox x"),
        (["--name", "show", "fox"], "main: fox show"),
        (["show"], "show: None"),
        (["show", "fox"], "show: fox"),
        (["./show"], "main: ./show None"),
    ],
    ids=" ".join,
)
def test_a_group_takes_arguments_unless_the_first_word_is_a_subcommand(
    words: list[str], says: str
) -> None:
    result = CliRunner().invoke(group(), words)
    assert (result.exit_code, result.output) == (0, says + "\n"), result.output


def test_a_group_refuses_a_second_argument() -> None:
    assert CliRunner().invoke(group(), ["fox", "show"]).exit_code == 2


def group() -> typer.Typer:
    """A command with an argument, an option and a subcommand."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Named(CommandSettings):
        model: Annotated[str | None, typer.Argument()] = None

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Main(Named):
        name: Annotated[str | None, typer.Option()] = None

    app = command_group()

    @app.callback()
    @command(Main)
    def main(settings: Main) -> int:
        print(f"main: {settings.model} {settings.name}")
        return 0

    @app.command()
    @command(Named)
    def show(settings: Named) -> int:
        print(f"show: {settings.model}")
        return 0

    return app


class TestCalibrate:
    def test_show_and_remove_are_subcommands_and_flags(self, d3: D3) -> None:
        for words in (["show"], ["show", "demo"], ["--show"], ["--show", "demo"]):
            shown = d3("calibrate", *words)
            assert (shown.code, shown.out) == (0, "")
            assert "nothing is stored" in shown.err
        for words in (["remove"], ["remove", "demo"], ["--remove"], ["--remove", "demo"]):
            removed = d3("calibrate", *words)
            assert removed.code == 0
            assert "nothing was stored for demo" in removed.err
        assert d3("calibrate", "show", "--json").out == '{"schema": 1, "calibrations": []}\n'
        check(d3("calibrate", "show", "-o", "csv"), 2, "csv")
        check(d3("calibrate", "remove", ""), 2, "no model or directory")

    @pytest.mark.parametrize(
        "words",
        [["--json", "show"], ["--target-drop", "2%", "remove"], ["--offline", "show", "demo"]],
        ids=" ".join,
    )
    def test_a_subcommand_after_options_is_refused(
        self, d3: D3, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check(d3("calibrate", *words), 2, "hint: options go after")
        monkeypatch.chdir(tmp_path)
        for name in ("show", "remove"):
            Path(name).mkdir()
        assert "options go after" not in d3("calibrate", *words).err

    @pytest.mark.parametrize("option", [["--json"], ["-o", "csv"], ["--target-drop", "2%"]])
    def test_remove_refuses_options_that_it_has_no_use_for(self, d3: D3, option: list[str]) -> None:
        check(d3("calibrate", "--remove", *option), 2, f"{option[0]} has no effect on --remove")
        assert d3("calibrate", "demo", "--remove", "--debug").code == 0

    @pytest.mark.parametrize("words", [["demo", "--target-drop", "x"], ["--target-drop", "x"]])
    def test_everything_else_is_the_command_itself(self, d3: D3, words: list[str]) -> None:
        check(d3("calibrate", *words), 2, '--target-drop is "x"')
        check(d3("calibrate", *words, "a", "b"), 2, "unexpected extra argument")

    def test_help_lists_both(self, d3: D3) -> None:
        text = d3("calibrate", "--help").out
        for word in ("--target-drop", "show", "remove", "[MODEL]"):
            assert word in text
        assert "d3 calibrate show [OPTIONS] [MODEL]" in d3("calibrate", "show", "--help").out
        assert "d3 calibrate remove [OPTIONS] [MODEL]" in d3("calibrate", "remove", "--help").out


def test_settings_that_d3_no_longer_has_are_ignored_with_a_note(
    d3: D3, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file().write_text('quantize_head = "auto"\nverify = true\nmax_tokens = 2\n')
    monkeypatch.setenv("D3_VERIFY", "1")
    monkeypatch.setenv("D3_QUANTIZE_HEAD", "nonsense")
    result = d3("generate", "Hello.")
    assert result.code == 0
    [note] = [line for line in result.err.splitlines() if "quantize_head" in line]
    assert f"{config_file()}: quantize_head, verify; d3 no longer has these settings" in note
    assert "use d3 models verify MODEL" in note
    [note] = [line for line in result.err.splitlines() if "D3_QUANTIZE_HEAD" in line]
    assert "D3_QUANTIZE_HEAD, D3_VERIFY; d3 no longer has these settings" in note
    assert "use d3 models verify MODEL" in note
    assert "2 tokens" in result.err


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["generate", "--verify", "Hi."], "d3 models verify MODEL"),
        (["generate", "--quantize-head", "auto", "Hi."], "8-bit head"),
        (["calibrate", "--prompt-tokens=64"], "first 64 tokens"),
        (["chat", "--system-file", "x"], '-s "$(cat FILE)"'),
    ],
)
def test_a_removed_option_names_what_replaces_it(d3: D3, words: list[str], instead: str) -> None:
    result = d3(*words)
    check(result, 2, f"error: {words[1].partition('=')[0]} was removed\n")
    assert instead in result.err


def test_the_config_file_of_0_1_0_is_read(d3: D3) -> None:
    old = Path(__file__).parent.parent / "data" / "v0.1.0" / "config.toml"
    config_file().write_text(old.read_text())
    result = d3("generate", "What is 1 plus 1?")
    assert result.code == 0
    assert "alpha 0.999" in result.err or "layers mean" in result.err


def test_every_setting_that_a_message_names_is_an_option() -> None:
    source = Path(d3cli.__file__).parent
    named = {
        name
        for path in source.rglob("*.py")
        if path.parent.name != "evals"  # its settings are the harness' model arguments
        for name in re.findall(r'\bSetting\("(\w+)"', path.read_text(encoding="utf-8"))
    }
    group = typer.main.get_command(app)
    commands = group.commands.values()  # type: ignore[attr-defined]
    options = {option for each in commands for one in each.params for option in one.opts}
    assert len(named) > 20
    assert {flag(Setting(name)) for name in named} <= options


def test_no_message_of_the_library_names_a_flag() -> None:
    """But for those of `evals` and `ranks`, which name lm-evaluation-harness's and torchrun's."""
    flags = {
        f"{path}: {text}"
        for path in Path(d3cli.__file__).parent.rglob("*.py")
        if not {"cli", "evals", "ranks"} & {*path.relative_to(Path(d3cli.__file__).parent).parts}
        for text in re.findall(r'"[^"\n]*--[a-z][^"\n]*"', path.read_text(encoding="utf-8"))
        if "hf download" not in text and "d3 chat --list" not in text and "`" not in text
    }
    assert not flags
