"""The command line of ``d3 serve``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from d3cli.cli import options
from d3cli.cli.command_line import CommandSettings
from d3cli.cli.completion import complete_model
from d3cli.cli.draft_options import DraftOptions
from d3cli.cli.model_options import MODEL_HELP, ModelOptions
from d3cli.cli.prompt_options import INPUT

ACCESS, CAPACITY = "Access", "Capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """Where the server listens, and who may use it."""

    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=ACCESS,
            help="The address to listen on. Any other than this machine's own needs --api-key.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, rich_help_panel=ACCESS, help="The port; 0: a free one."),
    ] = 8000
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="D3_API_KEY",
            metavar="KEY",
            rich_help_panel=ACCESS,
            help="Clients must send this key. Other users of this machine can see command lines: "
            "the variable hides it.",
        ),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            rich_help_panel=ACCESS,
            help="Let web pages of this origin use the API from a browser (CORS), such as "
            "http://localhost:3000; may be repeated. Default: none.",
        ),
    ] = None
    served_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=ACCESS,
            help="The model's id for clients. Default: its name.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityOptions:
    """How much the server takes on."""

    queue: Annotated[
        int,
        typer.Option(
            min=0,
            max=200,  # each holds a connection, and there are 256
            metavar="N",
            rich_help_panel=CAPACITY,
            help="Requests that may wait for their turn; more get status 503.",
        ),
    ] = 32
    sessions: Annotated[
        int,
        typer.Option(
            min=0,
            max=1000,
            metavar="N",
            rich_help_panel=CAPACITY,
            help="Conversations whose KV cache is kept, so that their next prompt is read from "
            "where it differs; 0 keeps none.",
        ),
    ] = 8
    kv_memory: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1e6,
            metavar="GB",
            rich_help_panel=CAPACITY,
            help="Memory for all KV caches. Default: half of what the model leaves free.",
        ),
    ] = None
    timeout: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            rich_help_panel=CAPACITY,
            help="The most time that a request may take, waiting included.",
        ),
    ] = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings(CommandSettings):
    """The command line of ``d3 serve``."""

    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", autocompletion=complete_model, help=MODEL_HELP + "."),
    ] = None
    access: AccessOptions
    capacity: CapacityOptions
    chat_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=INPUT,
            help="A Jinja chat template to use instead of the model's own.",
        ),
    ] = None
    depth: options.DepthOptions
    sampling: options.SamplingOptions
    drafts: DraftOptions
    loading: ModelOptions
    debug: options.Debug = False
