"""The commands of a chat: their table, and how a line that begins with a slash is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from d3cli.base.errors import UsageError
from d3cli.base.settings import BUILTIN, aliases
from d3cli.cli.chat import file_commands, reply_commands, setting_commands, turn_commands, views
from d3cli.cli.chat.completer import Arguments
from d3cli.cli.chat.screen import Screen
from d3cli.cli.chat.session import Chat
from d3cli.cli.chat.settings import CHOICES, LOSSLESS, SETTINGS


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        usage: what follows its name, as the help shows it; empty for nothing.
        run: runs it with the text after its name; returns an exit code if that ends the chat.
        arguments: returns words to complete with, or None for file names.
    """

    usage: str
    help: str
    run: Callable[[Chat, str], int | None]
    arguments: Arguments = tuple


ALPHAS = ("auto", "off", "0.999", "0.995", "0.99", "0.98")


def show_help(screen: Screen) -> None:
    """Lists the commands and the keys."""
    screen.print_rows(_help_rows())
    screen.print(f"\n{views.KEYS}")


def _help(chat: Chat, _: str) -> None:
    show_help(chat.screen)


def _exit(_: Chat, __: str) -> int:
    return 0


HELP = Command("", "this list", _help)
BYE = Command("", "leave (or Ctrl-D)", _exit)
COMMANDS = {
    "/help": HELP,
    "/?": HELP,
    "/alpha": Command(
        "[VALUE|auto|off]",
        "depth decay, from the next reply on",
        setting_commands.alpha,
        lambda: ALPHAS,
    ),
    "/lossless": Command(
        "[on|off|SOURCE]",
        "full depth's own replies, sooner: what drafts (lookup, depth, model), what was accepted",
        setting_commands.lossless,
        lambda: tuple(LOSSLESS),
    ),
    "/depth": Command("", "draw the depth of each token", reply_commands.depth),
    "/compare": Command("", "compare the last reply with full depth", reply_commands.compare),
    "/think": Command(
        "[on|off|hide]",
        "show the last reply's reasoning, or change whether the model thinks",
        reply_commands.think,
        lambda: CHOICES["think"],
    ),
    "/regen": Command(
        "[alpha VALUE|lossless VALUE]",
        "write the last reply again, at another depth if asked",
        reply_commands.regen,
        lambda: [
            *(f"alpha {alpha}" for alpha in ALPHAS),
            *(f"lossless {word}" for word in LOSSLESS),
        ],
    ),
    "/undo": Command("", "take back the last turn", turn_commands.undo),
    "/clear": Command("", "begin a new conversation", turn_commands.clear),
    "/set": Command(
        "[NAME VALUE]",
        "sampling, start, max-tokens and more",
        setting_commands.set_,
        lambda: [
            *SETTINGS,
            *(f"{name} {word}" for name, words in CHOICES.items() for word in words),
        ],
    ),
    "/show": Command("", "model, depth, sampling, context used", setting_commands.show),
    "/stats": Command("", "figures of the last reply and of all replies", reply_commands.stats),
    "/system": Command("[TEXT]", 'show or set the system prompt; "" removes it',
                       setting_commands.system),
    "/model": Command(
        "[NAME]",
        "show which model runs, or go on with another",
        setting_commands.model,
        lambda: [BUILTIN, *aliases()],
    ),
    "/save": Command("[FILE]", "show where it is saved, or save a copy", file_commands.save,
                     lambda: None),
    "/load": Command("FILE", "go on with a saved conversation", file_commands.load, lambda: None),
    "/attach": Command("[FILE]", "put a text file before the next message, or list the files",
                       file_commands.attach, lambda: None),
    "/export": Command("[--force] FILE", "write the conversation as Markdown",
                       file_commands.export, lambda: None),
    "/exit": BYE,
    "/bye": BYE,
}  # fmt: skip


# What other programs call these commands.
OTHER_NAMES = {
    "/retry": "/regen",
    "/redo": "/regen",
    "/resume": "/load",
    "/continue": "/load",
    "/open": "/load",
    "/file": "/attach",
    "/read": "/attach",
    "/new": "/clear",
    "/reset": "/clear",
    "/quit": "/exit",
    "/q": "/exit",
}


def run_command(chat: Chat, line: str, commands: Mapping[str, Command] = COMMANDS) -> int | None:
    """Runs a line that begins with a slash; returns an exit code if that ends the chat.

    Raises:
        UsageError: there is no such command, or it does not accept what follows it.
        D3Error: it failed.
    """
    # Split at any whitespace: "/bye" typed twice before the prompt is back arrives as two lines.
    name, argument = [*line.split(maxsplit=1), ""][:2]
    command = commands.get(name.lower())
    if command is None:
        near = _commands_meant(name.lower(), commands)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"there is no command {name[:40]}",
            f"{meant}/? lists all commands; to send a message that begins with a slash, type //",
        )
    # The line after a command may be meant as the next command, not as a file name or a number.
    if "\n" in line.strip() and command.usage and name.lower() != "/system":
        raise UsageError(f"{name} takes one line, and this is several", "type one at a time")
    if argument.strip() and not command.usage:
        raise UsageError(f"{name} takes no argument", f"type {name} alone")
    return command.run(chat, argument.strip())


def _commands_meant(name: str, commands: Mapping[str, Command]) -> list[str]:
    """What a user who types an unknown command may mean."""
    if name in OTHER_NAMES:
        return [OTHER_NAMES[name]]
    if name[1:].replace("_", "-") in SETTINGS:
        return [f"/set {name[1:].replace('_', '-')}"]
    return get_close_matches(name, commands, n=2) if len(name) > 1 else []


def _help_rows() -> list[tuple[str, str]]:
    """One row per command; names of the same command share it."""
    names: dict[int, list[str]] = {}
    for name, command in COMMANDS.items():
        names.setdefault(id(command), []).append(name)
    rows = []
    for command in COMMANDS.values():
        same = names.pop(id(command), None)
        if same:
            rows.append((f"{', '.join(same)} {command.usage}".strip(), command.help))
    return rows
