"""The commands of a chat: what begins with a slash."""

import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3cli.base.errors import D3Error, UsageError
from d3cli.base.settings import BUILTIN, aliases
from d3cli.cli import signals
from d3cli.cli.chat import views
from d3cli.cli.chat.session import Chat, Command
from d3cli.cli.depth import parse_alpha, parse_start
from d3cli.decode import transcript

if TYPE_CHECKING:
    from d3cli.decode.session import Reply

ALPHAS = ("auto", "off", "0.999", "0.995", "0.99", "0.98")


def _help(chat: Chat, _: str) -> None:
    chat.print_rows(_help_rows())
    chat.print(f"\n{views.KEYS}")


def _alpha(chat: Chat, argument: str) -> None:
    if argument:
        _as_option(lambda: chat.change(alpha=parse_alpha(argument)))
    chat.print(f"depth: {views.depth_in_words(chat.options)}", "dim")


def _depth(chat: Chat, _: str) -> None:
    chat.print(views.depth_curves(chat.options, chat.conversation.reply, chat.console.width))


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    name, value = name.lower().replace("_", "-"), value.strip()
    if not name:
        chat.print_rows(list(views.settings(chat.settings, chat.options).items()))
        chat.print("\n/set NAME VALUE, or /set NAME default")
        return
    if name not in SETTINGS:
        near = get_close_matches(name, SETTINGS, n=2)
        raise UsageError(
            f'there is no setting "{name}"',
            f"did you mean {' or '.join(near)}?" if near else "/set alone shows them all",
        )
    if not value:
        raise UsageError(f"/set {name} needs a value", f"{SETTINGS[name]}, or default")
    _as_option(lambda: _change(chat, name, value))
    shown = views.settings(chat.settings, chat.options)[name]
    chat.print(f"{name} is now {shown}", "dim")


# What each setting takes; where it is a choice, the words with "or" between.
SETTINGS = {
    "temperature": "a number, 0 for greedy",
    "top-p": "a number up to 1",
    "top-k": "a whole number, 0 for off",
    "min-p": "a number below 1",
    "repetition-penalty": "a number, 1 for off",
    "seed": "a whole number",
    "max-tokens": "a whole number",
    "stop": "a text",
    "start": "tokens, or a share of max-tokens: 20%",
    "core-first": "layers",
    "core-last": "layers",
    "think": "on or off",
    "stats": "on or off",
    "plain": "on or off",
    "on-overflow": "stop or drop-oldest",
}
SAMPLING = {
    "temperature": float,
    "top-p": float,
    "min-p": float,
    "repetition-penalty": float,
    "top-k": int,
    "seed": int,
}


def _change(chat: Chat, name: str, value: str) -> None:
    field, settings = name.replace("-", "_"), chat.settings
    is_default = value == "default"
    if name in SAMPLING:
        given = None if is_default else _number(value, SAMPLING[name])
        chat.change(sampling=settings.sampling | {field: given})
    elif name == "start":
        chat.change(start=None if is_default else parse_start(value, settings.max_tokens))
    elif name in ("max-tokens", "core-first", "core-last"):
        number = None if is_default else _number(value, int)
        if number is not None and number < (name == "max-tokens"):
            raise UsageError(f"{name} is {number}", "it counts, and this is too little")
        chat.change(**{field: number})
    elif name == "stop":
        chat.change(
            stop=() if is_default else (_unquoted(value).replace("\\n", "\n").replace("\\t", "\t"),)
        )
    elif name == "on-overflow":
        chat.change(on_overflow="stop" if is_default else _choice(name, value))
    else:
        default = {"think": None, "stats": True, "plain": False}[name]
        chat.change(**{field: default if is_default else _choice(name, value) == "on"})


def _number(text: str, kind: Callable[[str], float | int]) -> float | int:
    try:
        return kind(text)
    except ValueError:
        kinds = "whole number" if kind is int else "number"
        raise UsageError(f'"{text}" is no {kinds}', f"give a {kinds}, or default") from None


def _choices(name: str) -> list[str]:
    """The words that a setting takes; empty where it takes other things."""
    words = SETTINGS[name].split(" or ")
    return words if len(words) > 1 else []


def _choice(name: str, text: str) -> str:
    if text.lower() not in _choices(name):
        raise UsageError(f'"{text}" is no value for {name}', f"give {SETTINGS[name]}, or default")
    return text.lower()


def _as_option(action: Callable[[], Any]) -> Any:
    """Options' own errors speak of ``--name``; here there are only names."""
    try:
        return action()
    except UsageError as error:
        hint = re.sub(r"--([a-z][a-z-]*)", r"/set \1", error.hint)
        message = re.sub(r"--([a-z][a-z-]*)", r"\1", error.message)
        raise UsageError(message, hint) from error


def _unquoted(text: str) -> str:
    """A text without the quotes around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _show(chat: Chat, _: str) -> None:
    saved = "no"
    if chat.saving.id is not None:
        saved = str(transcript.path_of(chat.saving.id))
    if chat.saving.problem is not None:
        saved = f"NOT saved: {chat.saving.problem.message}"
    overview = views.overview(chat.conversation, chat.settings, chat.options)
    chat.print_rows([*overview, ("saved", saved)])


def _system(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    if argument:
        conversation.system = _unquoted(argument)
        chat.save()
    system = conversation.system
    chat.print(f"system prompt: {system}" if system else "no system prompt", "dim")


def _model(chat: Chat, argument: str) -> None:
    if not argument:
        raise UsageError("/model needs a name", "an alias, a hub id or a directory: d3 models")
    chat.change_model(argument)


def _stats(chat: Chat, _: str) -> None:
    if not chat.replies.totals.replies:
        raise UsageError("there are no replies yet", "say something first")
    chat.print_rows(views.totals(chat.replies.totals, chat.conversation.reply))


def _regen(chat: Chat, argument: str) -> None:
    conversation, options = chat.conversation, chat.options
    if argument:
        word, _, value = argument.partition(" ")
        if word != "alpha" or not value.strip():
            raise UsageError(
                f"/regen knows no {argument}", "type /regen alone, or /regen alpha 0.99"
            )
        options = _as_option(lambda: chat.options_with(alpha=parse_alpha(value.strip())))
    before = conversation.reply
    if argument and before is not None:
        # With the seed of the reply before, the depth is all that differs.
        options = replace(options, sampling=before.sampling)
    old = conversation.take_back_reply()
    if old is None:
        raise UsageError("there is no reply yet", "say something first")
    new = None
    try:
        new = chat.respond(options)
    finally:
        if new is None:  # nothing came, so the old one stays
            conversation.put_back_reply(old)
            chat.save()
    if new is not None:
        chat.print(views.where_they_differ(old, before, new), "dim")


def _compare(chat: Chat, _: str) -> None:
    reply = _last_reply(chat)
    if all(token.depth == reply.model.num_layers for token in reply.tokens):
        chat.print("the last reply ran at full depth: there is nothing to compare", "dim")
        return
    from d3cli.scoring.reply_compare import compare_reply

    with chat.output.waiting("comparing with full depth"):
        found = compare_reply(chat.conversation.engine, reply)
    signals.check()
    chat.print_rows(views.comparison(reply, found))


def _last_reply(chat: Chat) -> "Reply":
    reply = chat.conversation.reply
    if reply is None:
        raise UsageError(
            "the last message is no reply that this chat has written just now",
            "say something first, or /regen",
        )
    return reply


def _undo(chat: Chat, _: str) -> None:
    text = chat.conversation.take_back()
    if text is None:
        raise UsageError("there is nothing to take back", "say something first")
    chat.save()
    chat.draft = text
    chat.print("the last turn is taken back; your message stands at the prompt", "dim")


def _clear(chat: Chat, _: str) -> None:
    chat.begin_anew()
    chat.print("a new conversation", "dim")


def _save(chat: Chat, argument: str) -> None:
    if not chat.conversation.messages:
        raise UsageError("there is nothing to save yet", "say something first")
    if not argument:
        id_ = chat.saving.id or transcript.new_id()
        if chat.saving.id is None:
            chat.saving.save_as(id_)
        chat.saving.save(chat.conversation)
        if chat.saving.problem is not None:
            raise chat.saving.problem
        chat.print(f"saved: {transcript.path_of(id_)}", "dim")
        return
    path = _path(argument)
    if path.exists():
        try:
            transcript.read(path)
        except D3Error:
            raise UsageError(
                f"{path} is there already, and is no conversation", "give another name"
            ) from None
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent}", "make it first")
    transcript.write(path, chat.conversation.record())
    chat.print(f"saved: {path}", "dim")


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        raise UsageError("/load needs a file", "or the id of a conversation: d3 chat --list")
    path = _path(argument)
    if not path.exists():
        with suppress(UsageError):
            path = transcript.path_of(transcript.find(argument))
    chat.take_over(transcript.read(path))


def _path(argument: str) -> Path:
    """A file's name, perhaps in quotes."""
    try:
        words = shlex.split(argument)
        name = words[0] if len(words) == 1 else argument
        return Path(name).expanduser()
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{argument} is no file's name: {error}", "check the quotes") from error


def _exit(_: Chat, __: str) -> int:
    return 0


def _setting_words() -> Sequence[str]:
    return [*SETTINGS, *(f"{name} {word}" for name in SETTINGS for word in _choices(name))]


def _files() -> None:
    return None


def _models() -> Sequence[str]:
    return [BUILTIN, *aliases()]


_HELP = Command("", "this list", _help)
_BYE = Command("", "leave (or Ctrl-D)", _exit)
COMMANDS = {
    "/help": _HELP,
    "/?": _HELP,
    "/alpha": Command(
        "VALUE|auto|off", "depth decay from the next reply on", _alpha, lambda: ALPHAS
    ),
    "/depth": Command("", "draw the depth of each token", _depth),
    "/compare": Command("", "the last reply beside full depth", _compare),
    "/regen": Command(
        "[alpha VALUE]",
        "the last reply again, at another depth if asked",
        _regen,
        lambda: [f"alpha {alpha}" for alpha in ALPHAS],
    ),
    "/undo": Command("", "take back the last turn", _undo),
    "/clear": Command("", "begin a new conversation", _clear),
    "/set": Command("NAME VALUE", "sampling, start, max-tokens and more", _set, _setting_words),
    "/show": Command("", "model, depth, sampling, context used", _show),
    "/stats": Command("", "figures of the last reply and of all", _stats),
    "/system": Command("TEXT", 'set the system prompt; "" removes it', _system),
    "/model": Command("NAME", "go on with another model", _model, _models),
    "/save": Command("[FILE]", "where it is saved, or save a copy", _save, _files),
    "/load": Command("FILE", "go on with a saved conversation", _load, _files),
    "/exit": _BYE,
    "/bye": _BYE,
}


def _help_rows() -> list[tuple[str, str]]:
    """Every command in a line; those that do the same stand together."""
    names: dict[int, list[str]] = {}
    for name, command in COMMANDS.items():
        names.setdefault(id(command), []).append(name)
    pairs = []
    for command in COMMANDS.values():
        same = names.pop(id(command), None)
        if same:
            pairs.append((f"{', '.join(same)} {command.usage}".strip(), command.help))
    return pairs
