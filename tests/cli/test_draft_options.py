"""`--lossless` with and without a word, and what it refuses before a model is loaded."""

import pytest
import typer
from typer.testing import CliRunner

from d3cli.cli.command_line import command
from d3cli.cli.draft_options import Drafting
from d3cli.cli.generate import GenerateSettings
from d3cli.cli.optional_value import WithOptionalValues
from tests.conftest import D3, check


def parse(*words: str) -> GenerateSettings:
    """What `d3 generate` is given for these words."""
    found: list[GenerateSettings] = []

    def run(settings: GenerateSettings) -> int:
        """Do it."""
        found.append(settings)
        return 0

    app = typer.Typer()
    app.command(cls=WithOptionalValues)(command(GenerateSettings)(run))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return found[0]


@pytest.mark.parametrize(
    ("words", "source", "prompt"),
    [
        ("hi", None, ["hi"]),
        ("hi --lossless", "auto", ["hi"]),
        ("--lossless hi", "auto", ["hi"]),
        ("--lossless lookup hi", "lookup", ["hi"]),
        ("--lossless=depth hi", "depth", ["hi"]),
        ("--lossless --seed 3 hi", "auto", ["hi"]),
        ("--lossless=auto lookup hi", "auto", ["lookup", "hi"]),
        ("--lossless off hi", None, ["hi"]),
        ("hi --lossless -- --lossless", "auto", ["hi", "--lossless"]),
        ("--draft-model small hi", "auto", ["hi"]),
        ("--draft-model small --lossless model hi", "model", ["hi"]),
    ],
)
def test_the_word_after_lossless_is_its_own_only_if_it_knows_it(
    words: str, source: str | None, prompt: list[str]
) -> None:
    settings = parse(*words.split())
    drafting = settings.reply.drafts.read()
    assert (drafting and drafting.source) == source
    assert [word for word in (settings.prompts.model, settings.prompts.text) if word] == prompt


def test_another_options_value_is_not_read_as_an_option() -> None:
    settings = parse("--system", "--lossless", "-s", "--lossless", "--stop", "--lossless", "hi")
    assert settings.reply.template.system == "--lossless"
    assert settings.reply.drafts.read() is None


def test_the_environment_turns_it_on_and_the_command_line_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("D3_LOSSLESS", "lookup")
    assert parse("hi").reply.drafts.read() == Drafting("lookup")
    assert parse("hi", "--lossless", "off").reply.drafts.read() is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--lossless model", "--lossless model needs a draft model"),
        ("--lossless lookup --draft-model m", "--lossless lookup uses no draft model"),
        ("--lossless off --draft-model m", "--lossless off uses no draft model"),
        ("--draft-quantization int4", "--draft-quantization is given, but no draft model"),
        ("--lossless=fast", "'fast' is not one of 'auto', 'lookup'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(d3: D3, options: str, error: str) -> None:
    check(d3("generate", "Hi.", *options.split()), 2, error)
