"""Wiring: the commands, the config file's defaults, and errors to lines and exit codes."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from d3cli import __version__
from d3cli.base.errors import D3Error, is_panic
from d3cli.base.inert import inert
from d3cli.base.settings import config_file
from d3cli.cli import signals
from d3cli.cli.calibrate.command import calibrate_app
from d3cli.cli.calibrate.options import CalibrateSettings
from d3cli.cli.chat.command import chat
from d3cli.cli.chat.options import ChatCommandSettings
from d3cli.cli.command_line import defaults_from_config
from d3cli.cli.doctor.command import doctor
from d3cli.cli.generate import GenerateSettings, generate
from d3cli.cli.models import models_app
from d3cli.cli.output import ClosedPipe, Output, WriteError
from d3cli.cli.profile.command import profile
from d3cli.cli.profile.options import ProfileSettings
from d3cli.cli.signals import Stopped

INTERRUPTED = 130
# How torch's allocator and the loader of libraries say it.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "failed to map segment",
    "could not create a primitive",  # oneDNN's own way to say it
)


class _InOrder(TyperGroup):
    """Lists the commands in the order in which a user meets them."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return ["chat", "generate", "profile", "calibrate", "models", "doctor"]


app = typer.Typer(
    name="d3",
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(chat)
app.command()(generate)
app.command()(profile)
app.add_typer(calibrate_app, name="calibrate")
app.add_typer(models_app, name="models")
app.command()(doctor)

CONFIGURED = {
    "chat": ChatCommandSettings,
    "generate": GenerateSettings,
    "profile": ProfileSettings,
    "calibrate": CalibrateSettings,
}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"d3 {__version__}")
        raise typer.Exit


@app.callback()
def d3(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Local language models with fewer layers for later tokens.

    D³ (arXiv 2503.08524) needs no training: token t of a reply runs about L·alpha^t of a model's
    L layers. Faster, at a price in quality that you can see.

    A small model is built in: `d3 chat` talks with it. `d3 models` lists others, and `d3 doctor`
    says how fast they can be here.
    """
    if not ctx.obj:  # help is never withheld for a damaged config file
        ctx.default_map, note = defaults_from_config(CONFIGURED)
        if note:
            Output().note(note)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; errors become a line and a hint."""
    output = Output()
    try:
        words = list(arguments) or ["--help"]
        wants_help = bool({"--help", "-h"} & set(words))
        command = typer.main.get_command(app)
        if wants_help:
            _hide_types_of_flags(command)
        code = command.main(words, prog_name="d3", standalone_mode=False, obj=wants_help)
        return int(code or 0)
    except ClosedPipe:
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Stopped as stopped:
        return stopped.exit_code
    except (WriteError, OSError) as error:
        if stopped_by := signals.arrived():  # the terminal went, and what was written to it failed
            return 128 + stopped_by[0]
        _show_traceback()
        if isinstance(error, WriteError):
            output.failure(error)
            return error.exit_code
        output.error(f"the system refused: {error}", "check the disk and the permissions")
        return 1
    except D3Error as error:
        _show_traceback()
        output.failure(error)
        return error.exit_code
    except typer.TyperException as error:  # Typer's own: unknown options, wrong types
        _show_traceback()
        hint = "d3 --help, or --help after a command"
        with suppress(D3Error):  # there is no home
            if config_file().exists():
                hint += f"; {config_file()} sets options too"
        output.error(error.format_message().rstrip(".").replace("Value error, ", ""), hint)
        return error.exit_code
    except MemoryError as error:
        return _out_of_memory(output, error)
    except BaseException as error:  # a defect of ours; still one line
        if is_panic(error):
            _show_traceback()
            output.error(
                f"the model's tokenizer failed on this text: {str(error)[:200]}",
                "another text may work; the model's files may be damaged",
            )
            return 1
        if not isinstance(error, Exception):
            raise
        # torch's own error types; naming them would import torch into every command.
        if type(error).__name__ == "OutOfMemoryError" or any(
            words in str(error) for words in OUT_OF_MEMORY
        ):
            return _out_of_memory(output, error)
        _show_traceback()
        output.error(
            f"internal error: {type(error).__name__}: {error}",
            "run it again with --debug, and report what it shows",
        )
        return 1


def _hide_types_of_flags(command: Any, parent: typer.Context | None = None) -> None:
    """Else the help of `--debug` says ``<bool>``, as if a value were to follow."""
    context = typer.Context(command, parent, **command.context_settings)
    for parameter in command.get_params(context):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for inner in getattr(command, "commands", {}).values():
        _hide_types_of_flags(inner, context)


def _out_of_memory(output: Output, error: Exception) -> int:
    _show_traceback()
    output.error(
        f"out of memory: {str(error) or type(error).__name__}",
        "use --quantization bnb-4bit, shorter prompts and replies, or a smaller model",
    )
    return 1


def _show_traceback() -> None:
    if os.environ.get("D3_DEBUG", "").lower() in ("1", "true", "yes", "on"):
        print(inert(traceback.format_exc()), file=sys.stderr)
