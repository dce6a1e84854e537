"""``d3 chat``: a conversation at the terminal."""

import sys

from d3cli.base.errors import UsageError
from d3cli.cli.chat.options import ChatCommandSettings
from d3cli.cli.command_line import command
from d3cli.cli.output import Output
from d3cli.cli.request import Request
from d3cli.decode import transcript


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
    if keep.list_all:
        _list(output)
        return 0
    _check_terminal()
    if keep.resume_last and keep.resume is not None:
        raise UsageError("--continue and --resume cannot be combined", "give one of them")
    request = Request.read(settings.reply)
    # The prompt and Markdown take a while to import, which only a chat should.
    from d3cli.cli.chat.start import start

    return start(settings, request)


def _check_terminal() -> None:
    for stream in (sys.stdin, sys.stdout):
        if stream is None or not stream.isatty():
            raise UsageError("d3 chat needs a terminal", "for pipes and files, use d3 generate")


def _list(output: Output) -> None:
    from d3cli.cli.chat.views import listing

    found = transcript.all_conversations()
    if not found:
        output.note("no conversations yet; d3 chat starts one")
        return
    output.table(("id", "changed", "messages", "model", "first message"), listing(found))
