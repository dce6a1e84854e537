"""Wiring: the commands, config.toml's defaults, and the exit code."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from d3cli import __version__
from d3cli.cli.calibrate.command import calibrate_app
from d3cli.cli.calibrate.options import CalibrateSettings
from d3cli.cli.chat.command import chat
from d3cli.cli.chat.options import ChatCommandSettings
from d3cli.cli.command_line import defaults_from_config
from d3cli.cli.doctor.command import doctor
from d3cli.cli.failures import report
from d3cli.cli.generate import GenerateSettings, generate
from d3cli.cli.models import models_app
from d3cli.cli.optional_value import WithOptionalValues
from d3cli.cli.output import Output
from d3cli.cli.profile.command import profile
from d3cli.cli.profile.options import ProfileSettings
from d3cli.cli.serve.command import serve
from d3cli.cli.serve.options import ServeSettings


class _InOrder(TyperGroup):
    """Lists the commands in the order in which a user needs them."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return ["chat", "generate", "serve", "profile", "calibrate", "models", "doctor"]


app = typer.Typer(
    name="d3",
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=WithOptionalValues)(chat)
app.command(cls=WithOptionalValues)(generate)
app.command(cls=WithOptionalValues)(serve)
app.command(cls=WithOptionalValues)(profile)
app.add_typer(calibrate_app, name="calibrate")
app.add_typer(models_app, name="models")
app.command()(doctor)

CONFIGURED = {
    "chat": ChatCommandSettings,
    "generate": GenerateSettings,
    "serve": ServeSettings,
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
    if not ctx.obj:  # --help works with a damaged config file
        ctx.default_map, notes = defaults_from_config(CONFIGURED)
        for note in notes:
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
    except BaseException as error:
        return report(output, error)


def _hide_types_of_flags(command: Any, parent: typer.Context | None = None) -> None:
    """Otherwise the help of `--debug` says ``<bool>``, as if it took a value."""
    context = typer.Context(command, parent, **command.context_settings)
    for parameter in command.get_params(context):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for inner in getattr(command, "commands", {}).values():
        _hide_types_of_flags(inner, context)
