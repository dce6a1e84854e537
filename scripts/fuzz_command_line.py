"""Command lines and config files as parsers, for fuzzing: all that precedes a command's run."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import typer
from fuzz_common import text_of

from d3cli.base.errors import D3Error

COMMANDS = ("generate", "chat", "serve", "profile", "calibrate")


class ReadError(D3Error):
    """Ends a command line that was read, in place of the command.

    Attributes:
        settings: the command's.
    """

    def __init__(self, settings: Any) -> None:
        super().__init__("read")
        self.read_settings = settings


def command_line(data: bytes) -> object:
    """A command line, a word a line. It is read, and everything of it is asked for; it never runs.

    The first byte chooses the command, so that no other one is found: some write files.
    """
    words = text_of(data[1:]).replace("\0", "").split("\n")
    return read_line([COMMANDS[(data or b"\0")[0] % len(COMMANDS)], *words])


def read_line(words: Sequence[str]) -> object:
    """The settings of a command line, with the defaults of the config file; None for help.

    Raises:
        D3Error: it is refused.
    """
    from d3cli.cli import command_line

    build = command_line._build
    depth = 0

    def build_only(*arguments: Any, **named: Any) -> Any:
        nonlocal depth  # groups of options are built inside
        depth += 1
        built = build(*arguments, **named)
        depth -= 1
        if not depth:
            raise ReadError(built)
        return built

    try:
        with (
            patch.object(command_line, "_build", build_only),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            _app().main(list(words), prog_name="d3", standalone_mode=False)
    except ReadError as read:
        return list(_asked(read.read_settings))
    except typer.TyperException as error:
        return error.format_message()
    return None


@cache
def _app() -> Any:
    from d3cli.cli.app import app

    return typer.main.get_command(app)


def _asked(settings: Any) -> Iterator[object]:
    """The values of all properties of a settings object and of its groups."""
    for name, value in vars(type(settings)).items():
        if isinstance(value, property):
            with contextlib.suppress(D3Error):
                yield name, getattr(settings, name)
    with contextlib.suppress(D3Error, AttributeError):
        yield settings.read()
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _asked(value)


SEEDS = [
    b"\0demo\nTell me.\n--alpha\n0.99\n--units\nsublayer\n--lossless\ndepth\n--start\n20%",
    b"\0demo\n--input\nrows.jsonl\n--output-file\nout.jsonl\n--batch-size\nauto\n--seed\n-1",
    b"\1--max-memory\n0=10GiB,cpu=1.5 GB,disk=0\n--quantization\nnested\n--draft-model\ndemo",
    b"\2demo\n--port\n0\n--kv-memory\n0.5\n--queue\n3\n--lossless\n--stop\n\\n\n--temp\n0.8",
    b"\3demo\n--policy\nskipdecode\n--needed\n--repeat\n2\n-o\nhtml\n--lossless=lookup",
    b"\4demo\n--for\nlossless\n--target-drop\n1%\n--max-time\n10m\n--order\nprompt",
]
CONFIG = (
    b'alpha = 0.99\nunits = "sublayer"\nlossless = "lookup"\nquantization = "nested"\n'
    b'max_memory = "cpu=1GB"\ntemperature = 0.5\noffline = true\nthreads = 2\nkeys = "vi"\n'
)
