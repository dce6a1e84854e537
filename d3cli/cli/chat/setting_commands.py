"""Commands that show or change how replies are written: /alpha, /lossless, /set and others."""

from difflib import get_close_matches

from d3cli.base.errors import UsageError
from d3cli.cli.chat import views
from d3cli.cli.chat.model_switch import switch_model
from d3cli.cli.chat.session import Chat
from d3cli.cli.chat.settings import (
    COMMANDS,
    SETTINGS,
    parse_change,
    parse_lossless,
    unquoted,
)
from d3cli.decode import transcript
from d3cli.depth.parse import parse_alpha


def alpha(chat: Chat, argument: str) -> None:
    """Changes alpha if one is given, and shows the depth schedule."""
    if argument and chat.change(alpha=parse_alpha(argument)):
        return
    chat.screen.print(f"depth: {views.depth_in_words(chat.options, chat.compared)}", "dim")


def lossless(chat: Chat, argument: str) -> None:
    """Changes what drafts if that is given, and shows it, with what was accepted so far.

    Raises:
        UsageError: there is no such source, or it needs a draft model.
    """
    if argument:
        chat.change(lossless=parse_lossless(argument))
    rows = [("lossless", views.lossless_in_words(chat.options))]
    if not argument:
        rows += views.drafts_so_far(chat.replies.totals)
    elif chat.options.drafter is None:
        rows.append(("depth", views.depth_in_words(chat.options, chat.compared)))
    chat.screen.print_rows(rows)


def set_(chat: Chat, argument: str) -> None:
    """Changes one setting, or shows all.

    Raises:
        UsageError: there is no such setting, or it does not accept this value.
    """
    name, _, value = argument.partition(" ")
    name, value = name.lower().replace("_", "-"), value.strip()
    if not name:
        chat.screen.print_rows(list(views.settings(chat.settings, chat.options).items()))
        chat.screen.print("\n/set NAME VALUE, or /set NAME default")
        return
    if name in COMMANDS:
        raise UsageError(f"/set does not change {name}", f"type /{name} {value}".rstrip())
    if name not in SETTINGS:
        near = get_close_matches(name, SETTINGS, n=2)
        raise UsageError(
            f'there is no setting "{name}"',
            f"did you mean {' or '.join(near)}?" if near else "/set alone lists all settings",
        )
    if not value:
        raise UsageError(f"/set {name} needs a value", f"{SETTINGS[name]}, or default")
    chat.change(**parse_change(name, value, chat.settings))
    shown = views.settings(chat.settings, chat.options)[name]
    chat.screen.print(f"{name} is now {shown}", "dim")


def system(chat: Chat, argument: str) -> None:
    """Changes the system prompt if one is given, and shows it."""
    conversation = chat.conversation
    if argument:
        conversation.system = unquoted(argument)
        chat.save()
    prompt = conversation.system
    chat.screen.print(f"system prompt: {prompt}" if prompt else "no system prompt", "dim")


def model(chat: Chat, argument: str) -> None:
    """Goes on with another model, or shows which one runs.

    Raises:
        D3Error: it cannot be loaded.
    """
    if argument:
        switch_model(chat, argument)
        return
    chat.screen.print(
        f"model: {chat.model_name}; to go on with another: /model and an alias, a hub id, a "
        "directory or a GGUF file",
        "dim",
    )


def show(chat: Chat, _: str) -> None:
    """Shows the model, its settings, the context used and the file."""
    saved = "no"
    if chat.saving.id is not None:
        saved = str(transcript.path_of(chat.saving.id))
    if chat.saving.problem is not None:
        saved = f"NOT saved: {chat.saving.problem.message}"
    overview = views.overview(chat.conversation, chat.settings, chat.options, chat.compared)
    chat.screen.print_rows([*overview, ("saved", saved)])
