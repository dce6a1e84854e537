"""``d3 chat``: a conversation at the terminal."""

import sys

from d3cli.base.errors import UsageError
from d3cli.cli.chat.options import ChatCommandSettings, KeepOptions
from d3cli.cli.chat.saved import delete, list_saved
from d3cli.cli.command_line import command
from d3cli.cli.output import Output
from d3cli.cli.request import Request


@command(ChatCommandSettings)
def chat(settings: ChatCommandSettings) -> int:
    """Talk with a model, turn by turn.

    Depth can be changed during a conversation: /alpha 0.99, /alpha off; /regen alpha off writes
    the last reply again at full depth, /compare shows the price. /lossless on writes full depth's
    own replies sooner. /? lists all commands.

    Examples:
    - `d3 chat`

    - `d3 chat llama-3-8b --alpha 0.99`

    - `d3 chat -c`
    """
    output, keep = Output(), settings.keep
    _check(keep, settings.model)
    if keep.list_all:
        return list_saved(output, as_json=keep.as_json)
    if keep.delete is not None:
        return delete(output, keep.delete, ask=not keep.yes)
    _check_terminal()
    request = Request.read(output, settings.reply)
    # The prompt and Markdown take a while to import, which only a chat should.
    from d3cli.cli.chat.start import start

    return start(settings, request)


def _check(keep: KeepOptions, model: str | None) -> None:
    """Raises UsageError if options about saved conversations contradict each other.

    A second id after --delete would be taken for a model.
    """
    actions = {
        "--list": keep.list_all,
        "--delete": keep.delete is not None,
        "--continue": keep.resume_last,
        "--resume": keep.resume is not None,
    }
    given = [name for name, value in actions.items() if value]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} cannot be combined", "give one of them")
    if model is not None and (keep.list_all or keep.delete is not None):
        one = "lists all conversations" if keep.list_all else "deletes one conversation"
        raise UsageError(f"{given[0]} {one}, so {model} has no effect", "leave it out")
    for name, value, needed in (
        ("--json", keep.as_json, "--list"),
        ("--yes", keep.yes, "--delete"),
    ):
        if value and needed not in given:
            raise UsageError(f"{name} belongs to {needed}", f"leave it out, or add {needed}")


def _check_terminal() -> None:
    for stream in (sys.stdin, sys.stdout):
        if stream is None or not stream.isatty():
            raise UsageError("d3 chat needs a terminal", "for pipes and files, use d3 generate")
