"""What /set accepts, and how a chat names settings."""

from typing import Any

import pytest

from d3cli.base.errors import D3Error, Setting, UsageError
from d3cli.cli.chat.commands import COMMANDS
from d3cli.cli.chat.settings import (
    CHOICES,
    SETTINGS,
    ChatSettings,
    parse_change,
    spell_setting,
    unquoted,
)
from d3cli.cli.prompt_options import Think
from tests.cli.chat.desk import NewDesk


@pytest.mark.parametrize(
    ("name", "text", "changes"),
    [
        ("temperature", "0.5", {"sampling": {"seed": 1, "temperature": 0.5}}),
        ("top-k", "40", {"sampling": {"seed": 1, "top_k": 40}}),
        ("seed", "default", {"sampling": {"seed": None}}),
        ("max-tokens", "1", {"max_tokens": 1}),
        ("max-tokens", "default", {"max_tokens": None}),
        ("core-first", "0", {"core_first": 0}),
        ("start", "7", {"start": 7}),
        ("start", "50%", {"start": 5}),
        ("stop", "a\\tb\\n", {"stop": ("a\tb\n",)}),
        ("stop", '" x "', {"stop": (" x ",)}),
        ("stop", "default", {"stop": ()}),
        ("think", "ON", {"think": Think.on}),
        ("think", "hide", {"think": Think.hide}),
        ("think", "default", {"think": None}),
        ("stats", "off", {"stats": False}),
        ("stats", "default", {"stats": True}),
        ("plain", "on", {"plain": True}),
        ("on-overflow", "drop-oldest", {"on_overflow": "drop-oldest"}),
        ("on-overflow", "default", {"on_overflow": "stop"}),
    ],
)
def test_values_become_changes(name: str, text: str, changes: dict[str, Any]) -> None:
    settings = ChatSettings(sampling={"seed": 1}, max_tokens=10)
    assert parse_change(name, text, settings) == changes


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_default_and_refuses_nonsense(name: str) -> None:
    assert parse_change(name, "default", ChatSettings())
    if name != "stop":  # which may be any text
        with pytest.raises(UsageError):
            parse_change(name, "nonsense", ChatSettings())


def test_a_share_needs_a_length() -> None:
    with pytest.raises(UsageError, match="is a share of"):
        parse_change("start", "50%", ChatSettings())


def test_choices_are_words() -> None:
    assert set(CHOICES) <= set(SETTINGS)
    assert all(" " not in word for words in CHOICES.values() for word in words)


@pytest.mark.parametrize(
    ("setting", "spelled"),
    [
        (Setting("top_p"), "top-p"),
        (Setting("top_p", "0.9"), "/set top-p 0.9"),
        (Setting("max_tokens", "128"), "/set max-tokens 128"),
        (Setting("alpha"), "alpha"),
        (Setting("alpha", "off"), "/alpha off"),
        (Setting("stop", " end"), "/set stop ' end'"),
        (Setting("dtype"), "--dtype"),  # a chat cannot change it
        (Setting("dtype", "float32"), "--dtype float32"),
        (Setting("chat_template"), "--chat-template"),
    ],
)
def test_a_setting_is_named_by_what_changes_it(setting: Setting, spelled: str) -> None:
    assert spell_setting(setting) == spelled


def test_an_error_of_the_library_reads_as_a_sentence_of_the_chat() -> None:
    error = D3Error((Setting("top_p"), " is 7"), ("lower it, or try ", Setting("alpha", "off")))
    assert error.told(spell_setting) == ("top-p is 7", "lower it, or try /alpha off")


@pytest.mark.parametrize(
    ("text", "inner"),
    [('"a b"', "a b"), ("'a'", "a"), ('""', ""), ('"', '"'), ("\"a'", "\"a'"), ("a", "a")],
)
def test_quotes_around_a_text_are_taken_off(text: str, inner: str) -> None:
    assert unquoted(text) == inner


@pytest.mark.parametrize(
    ("name", "shown"),
    [("/alpha", "depth: "), ("/set", "/set NAME VALUE"), ("/system", "no system prompt")],
)
def test_the_help_shows_that_an_argument_may_be_missing(
    desk: NewDesk, name: str, shown: str
) -> None:
    assert COMMANDS[name].usage.startswith("[")
    assert shown in desk().type(name)
